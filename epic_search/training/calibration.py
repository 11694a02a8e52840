"""What a new residual must know of the decoder's states before the first step: their means and spreads."""

import torch

from epic_search.encoder.batching import batches, token_budget
from epic_search.encoder.encoder import Encoder
from epic_search.training.mixture import Mixture
from epic_search.training.objective import mixed_precision

BATCHES, TEXTS = 16, 16  # batches of the run, the first ones, and queries and passages of each


@torch.no_grad()
def calibrate(encoder: Encoder, mixture: Mixture, *, max_length: int) -> None:
    """Standardise the states of an encoder with a residual, by texts that a run begins with; no other changes."""
    if encoder.model.residual is None:
        return
    rows, texts = [], []
    for step in range(min(BATCHES, len(mixture))):
        batch = mixture.batch(step)
        queries, query_ids = encoder.cut(batch.queries[:TEXTS], max_length=max_length)
        passages, passage_ids = encoder.cut(batch.passages[:TEXTS], max_length=max_length)
        layouts = [encoder.template.query(task=task, demonstrations=0) for task in batch.tasks[:TEXTS]]
        rows += [layout.row(ids) for layout, ids in zip(layouts, query_ids, strict=True)]
        rows += [encoder.template.passage.row(ids) for ids in passage_ids]
        texts += [*queries, *passages]
    none = torch.empty(0, encoder.dim, device=encoder.device)
    parts = []
    for group in batches([len(row) for row in rows], token_budget=token_budget(encoder.device)):
        context_BC = encoder.context([texts[i] for i in group])
        with mixed_precision(encoder):
            parts.append(encoder.model.pooled([rows[i] for i in group], context_BC=context_BC, soft_SE=none))
    encoder.model.residual.calibrate(torch.cat(parts))
