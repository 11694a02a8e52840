"""Large batches in bounded memory: GradCache (arXiv 2101.06983), with gradients through demonstrations.

The loss needs the vectors of the whole batch, but not their activations all at once:

1. Encode everything without gradients, pass 2 with the vectors of pass 1 in its slots (or with the texts of its
   demonstrations, which no gradient goes through).
2. Compute the loss of the vectors alone and its gradient for each vector: the cache.
3. Encode pass 2 again, group by group, and send each group's cached gradients back through it. What arrives at its soft
   slots is the gradient of pass-1 vectors: it is added to theirs (not where the objective stops gradients).
4. Do the same with pass 1.

Everything is encoded twice, and never more than one group (`token_budget`) has its activations in memory. Gradients are
those of the plain path; dropout draws the same numbers in both encodings.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from epic_search.encoder.encoder import Encoder
from epic_search.encoder.prompt import Row
from epic_search.training.objective import Losses, Passes, embed_group, embed_texts, losses_of_vectors, row_groups
from epic_search.training.recipe import Objective

_QUERIES, _PASSAGES, _DEMONSTRATED = range(3)


def cached_gradients(encoder: Encoder, passes: Passes, objective: Objective, *, token_budget: int, seed: int) -> Losses:
    """Add the gradients of a batch's loss to the parameters; the losses returned carry none. `seed` is for dropout."""
    cache = _Cache(encoder, passes, token_budget=token_budget, seed=seed)
    with torch.no_grad():
        query_QE = cache.vectors(_QUERIES, None) if passes.query_rows else None
        passage_PE = cache.vectors(_PASSAGES, None)
        demonstrated_QE = None
        if passes.demonstrated_rows:
            soft = passes.soft(query_QE, passage_PE, stop_gradient=True)
            demonstrated_QE = cache.vectors(_DEMONSTRATED, soft)
    text_KE = embed_texts(encoder, passes, token_budget=token_budget)
    leaves = [vectors.requires_grad_() for vectors in (query_QE, passage_PE, demonstrated_QE) if vectors is not None]
    halves = encoder.config.pooling == "concat"
    losses = losses_of_vectors(passes, query_QE, passage_PE, demonstrated_QE, text_KE, objective, halves=halves)
    losses.total.backward()
    assert all(leaf.grad is not None for leaf in leaves), [leaf.shape for leaf in leaves]

    if demonstrated_QE is not None and demonstrated_QE.grad is not None:
        # Unless they are stopped, the gradients of pass-1 vectors grow by what comes back through the slots.
        slots = partial(passes.soft, query_QE, passage_PE, stop_gradient=objective.stop_gradient)
        cache.send_back(_DEMONSTRATED, demonstrated_QE.grad, slots)
    for which, vectors in ((_QUERIES, query_QE), (_PASSAGES, passage_PE)):
        if vectors is not None and vectors.grad is not None:
            cache.send_back(which, vectors.grad)
    return replace(losses, total=losses.total.detach())


class _Cache:
    """Encodes the rows of a batch group by group, twice alike."""

    def __init__(self, encoder: Encoder, passes: Passes, *, token_budget: int, seed: int) -> None:
        self._encoder = encoder
        self._passes = passes
        self._seed = seed
        self._rows = (passes.query_rows, passes.passage_rows, passes.demonstrated_rows)
        self._contexts = (passes.context_query, passes.context_passage, passes.context_query)
        self._groups = [row_groups(rows, token_budget=token_budget) for rows in self._rows]

    def vectors(self, which: int, soft: Sequence[Tensor] | None) -> Tensor:
        """(N, E) vectors of all rows of one sort, in order."""
        out_NE = torch.empty(len(self._rows[which]), self._encoder.dim, device=self._encoder.device)
        for number, indices in enumerate(self._groups[which]):
            out_NE[torch.from_numpy(indices).to(out_NE.device)] = self._group(which, number, soft)
        return out_NE

    def send_back(
        self, which: int, gradient_NE: Tensor, slots: Callable[[], list[Tensor] | None] = lambda: None
    ) -> None:
        """Encode again, with gradients, and send the cached ones of each vector back.

        `slots` makes what fills the soft slots of all rows, from pass-1 vectors.
        """
        for number, indices in enumerate(self._groups[which]):
            # Made anew for each group: backward frees the way from the slots to their sources.
            vectors_BE = self._group(which, number, slots())
            vectors_BE.backward(gradient_NE[torch.from_numpy(indices).to(gradient_NE.device)])

    def _group(self, which: int, number: int, soft: Sequence[Tensor] | None) -> Tensor:
        torch.manual_seed(self._seed * 3_000_000 + which * 1_000_000 + number)
        rows: Sequence[Row] = self._rows[which]
        return embed_group(self._encoder, rows, self._contexts[which], soft, self._groups[which][number])
