"""The EPIC objective (arXiv 2605.01372, as reconstructed): one encoder, two passes, one contrastive loss for each.

Pass 1 encodes queries without demonstrations, and passages. Pass 2 encodes the queries again with demonstrations that
are other pairs of the batch, each as two soft tokens made of pass-1 vectors: reading them is what it trains.

Shapes: Q queries, P passages, K soft slots in the batch (two for each demonstration), E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.batching import batches
from epic_search.encoder.encoder import Encoder
from epic_search.encoder.prompt import Row
from epic_search.training.pairs import TrainBatch, bare
from epic_search.training.recipe import Objective


@dataclass(frozen=True)
class Losses:
    """`total` carries the gradient; the rest is for the log, None where no query of the batch counts."""

    total: Tensor
    without: float | None
    with_demonstrations: float | None
    distillation: float | None
    accuracy_without: float | None
    accuracy_with: float | None
    tokens: int


def epic_losses(
    encoder: Encoder,
    batch: TrainBatch,
    objective: Objective,
    *,
    rng: np.random.Generator,
    max_length: int,
    token_budget: int,
) -> Losses:
    """Both passes over one batch. `rng` draws the demonstrations; texts are cut at `max_length` tokens."""
    context_query, context_passage = encoder.context(batch.queries), encoder.context(batch.passages)
    query_ids = encoder.token_ids(batch.queries, max_length=max_length)
    passage_rows = [
        encoder.template.passage.row(ids) for ids in encoder.token_ids(batch.passages, max_length=max_length)
    ]
    none = torch.empty(0, encoder.dim, device=encoder.device)

    def query_rows(demonstrations: Sequence[int]) -> list[Row]:
        layouts = [
            encoder.template.query(task=task, demonstrations=k)
            for task, k in zip(batch.tasks, demonstrations, strict=True)
        ]
        return [layout.row(ids) for layout, ids in zip(layouts, query_ids, strict=True)]

    rows_1 = query_rows([0] * len(query_ids))
    query_QE = embed(encoder, rows_1, context_query, [none] * len(rows_1), token_budget=token_budget)
    passage_PE = embed(encoder, passage_rows, context_passage, [none] * len(passage_rows), token_budget=token_budget)
    allowed_QP = torch.from_numpy(batch.allowed_QP).to(encoder.device)
    told_Q = ~torch.from_numpy(batch.untold_Q).to(encoder.device)
    scores_QP = query_QE @ passage_PE.T
    loss_1, accuracy_1 = info_nce(scores_QP, allowed_QP, told_Q, objective)
    if encoder.config.pooling == "concat":
        loss_1 = loss_1 + halves_loss(query_QE, passage_PE, allowed_QP, told_Q, objective)
    total = loss_1
    tokens = sum(map(len, rows_1)) + sum(map(len, passage_rows))

    distillation = None
    if objective.distill_weight and batch.pairs and context_query is not None and context_passage is not None:
        distillation = distill(scores_QP, context_query @ context_passage.T, allowed_QP, objective)
        total = total + objective.distill_weight * distillation

    loss_2, accuracy_2 = None, None
    if objective.demonstrations:
        shown = draw_demonstrations(batch, objective.demonstrations, rng)
        sources = (query_QE.detach(), passage_PE.detach()) if objective.stop_gradient else (query_QE, passage_PE)
        # (k, 2, E) -> (2k, E): query 1, passage 1, query 2, ... as in a Prompt
        soft = [torch.stack([sources[0][d], sources[1][d]], dim=1).flatten(0, 1) for d in shown]
        rows_2 = query_rows([len(d) for d in shown])
        demonstrated_QE = embed(encoder, rows_2, context_query, soft, token_budget=token_budget)
        visible_QP = allowed_QP & ~torch.from_numpy(demonstrated(batch, shown)).to(encoder.device)
        told_Q = told_Q | torch.tensor([len(d) > 0 for d in shown], device=encoder.device)
        loss_2, accuracy_2 = info_nce(demonstrated_QE @ passage_PE.T, visible_QP, told_Q, objective)
        if encoder.config.pooling == "concat":
            loss_2 = loss_2 + halves_loss(demonstrated_QE, passage_PE, visible_QP, told_Q, objective)
        total = total + loss_2
        tokens += sum(map(len, rows_2))

    return Losses(
        total if batch.pairs else objective.label_weight * total,
        without=loss_1.item() if accuracy_1 is not None else None,
        with_demonstrations=loss_2.item() if loss_2 is not None and accuracy_2 is not None else None,
        distillation=distillation.item() if distillation is not None else None,
        accuracy_without=accuracy_1,
        accuracy_with=accuracy_2,
        tokens=tokens,
    )


def embed(
    encoder: Encoder,
    rows: Sequence[Row],
    context_NC: Tensor | None,
    soft: Sequence[Tensor],
    *,
    token_budget: int,
) -> Tensor:
    """(N, E) unit-length vectors of rows, in order, with gradients. Rows are grouped by length to save padding."""
    parts: list[Tensor] = []
    order: list[np.ndarray] = []
    mixed = encoder.dtype == torch.bfloat16
    for indices in batches([len(row) for row in rows], token_budget=token_budget):
        context_BC = context_NC[torch.from_numpy(indices).to(context_NC.device)] if context_NC is not None else None
        soft_SE = torch.cat([soft[i] for i in indices])
        # Autocast already gives LoRA's float32 weights the inputs they need; peft's own casts would copy every
        # activation. Scores and losses stay outside: at a temperature of 0.02, bfloat16 is a fifth of a logit coarse.
        with (
            torch.autocast(encoder.device.type, dtype=torch.bfloat16, enabled=mixed),
            disable_input_dtype_casting(encoder.model.backbone, active=mixed),
        ):
            parts.append(encoder.model([rows[i] for i in indices], context_BC=context_BC, soft_SE=soft_SE))
        order.append(indices)
    restore = torch.from_numpy(np.argsort(np.concatenate(order))).to(parts[0].device)
    return torch.cat(parts)[restore]


def draw_demonstrations(batch: TrainBatch, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """For each query 0..`most` other pairs of its group (at least one where only they tell the relation).

    A pair that shares a text with the query's own pair is never shown: it would give the answer away.
    """
    own = [{bare(query), bare(passage)} for query, passage in zip(batch.queries, batch.passages, strict=False)]
    shown: list[np.ndarray] = []
    for i, untold in enumerate(batch.untold_Q):
        k = rng.integers(1 if untold else 0, most + 1)
        others = [j for j in np.flatnonzero(batch.group_Q == batch.group_Q[i]) if own[i].isdisjoint(own[j])]
        shown.append(rng.permutation(np.array(others, dtype=np.int64))[:k])
    return shown


def demonstrated(batch: TrainBatch, shown: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, P) True where passage j stands, in these or nearly these words, in a demonstration of query i."""
    texts = [bare(passage) for passage in batch.passages]
    rows = [{texts[d] for d in demonstrations} for demonstrations in shown]
    return np.array([[text in row for text in texts] for row in rows])


def info_nce(
    scores_QP: Tensor, allowed_QP: Tensor, told_Q: Tensor, objective: Objective
) -> tuple[Tensor, float | None]:
    """InfoNCE at `objective.temperature` and in-batch accuracy over the queries in `told_Q`.

    The positive of query i is passage i. A candidate that scores above its positive by more than the margin is taken
    for a false negative (Qwen3-Embedding, arXiv 2506.05176) and left out. Where `told_Q` holds no query the loss is 0
    and there is no accuracy.
    """
    positive_Q1 = scores_QP.diagonal().unsqueeze(1)
    candidates_QP = allowed_QP
    if objective.false_negative_margin is not None:
        candidates_QP = allowed_QP & (scores_QP.detach() <= positive_Q1.detach() + objective.false_negative_margin)
    logits_QP = (scores_QP / objective.temperature).masked_fill(~candidates_QP, float("-inf"))
    losses_Q = F.cross_entropy(logits_QP, torch.arange(len(scores_QP), device=scores_QP.device), reduction="none")
    hits_Q = scores_QP.masked_fill(~allowed_QP, float("-inf")).amax(dim=1) == positive_Q1.squeeze(1)
    count = int(told_Q.sum())
    accuracy = int((hits_Q & told_Q).sum()) / count if count else None
    return (losses_Q * told_Q).sum() / max(1, count), accuracy


def halves_loss(
    query_QE: Tensor, passage_PE: Tensor, allowed_QP: Tensor, told_Q: Tensor, objective: Objective
) -> Tensor:
    """`half_weight` times the InfoNCE losses of the Contextual half and of the EOS half, each ranking by itself.

    Without it the Contextual half, good from the first step, leaves the EOS half nothing to learn.
    """
    losses = [
        info_nce(F.normalize(query_QH, dim=1) @ F.normalize(passage_PH, dim=1).T, allowed_QP, told_Q, objective)[0]
        for query_QH, passage_PH in zip(query_QE.chunk(2, dim=1), passage_PE.chunk(2, dim=1), strict=True)
    ]
    return objective.half_weight * torch.stack(losses).sum()


def distill(scores_QP: Tensor, teacher_QP: Tensor, allowed_QP: Tensor, objective: Objective) -> Tensor:
    """KL divergence from the teacher's distribution over the passages of the batch, at `distill_temperature`."""
    temperature = objective.distill_temperature
    student = F.log_softmax((scores_QP / temperature).masked_fill(~allowed_QP, -1e4), dim=1)
    teacher = F.log_softmax((teacher_QP / temperature).masked_fill(~allowed_QP, -1e4), dim=1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")
