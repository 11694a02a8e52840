"""The EPIC objective (arXiv 2605.01372, as reconstructed): one encoder, two passes, one contrastive loss for each.

Pass 1 encodes queries without demonstrations, and passages. Pass 2 encodes the queries again with demonstrations that
are other pairs of the batch, each as two soft tokens made of pass-1 vectors: reading them is what it trains.

Shapes: Q queries, P passages, K soft slots in the batch (two for each demonstration), E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.batching import batches
from epic_search.encoder.encoder import Encoder
from epic_search.training.pairs import TrainBatch
from epic_search.training.recipe import Objective


@dataclass(frozen=True)
class Losses:
    """`total` carries the gradient; the rest are means for the log."""

    total: Tensor
    without: float
    with_demonstrations: float
    distillation: float
    accuracy_without: float
    accuracy_with: float
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

    def query_rows(demonstrations: Sequence[int]) -> list[list[int]]:
        layouts = [
            encoder.template.query(task=task, demonstrations=k)
            for task, k in zip(batch.tasks, demonstrations, strict=True)
        ]
        return [layout.row(ids) for layout, ids in zip(layouts, query_ids, strict=True)]

    rows_1 = query_rows([0] * len(query_ids))
    query_QE = embed(encoder, rows_1, context_query, [none] * len(rows_1), token_budget=token_budget)
    passage_PE = embed(encoder, passage_rows, context_passage, [none] * len(passage_rows), token_budget=token_budget)
    allowed_QP = torch.from_numpy(batch.allowed_QP).to(encoder.device)
    loss_1, accuracy_1 = info_nce(query_QE @ passage_PE.T, allowed_QP, objective)
    tokens = sum(map(len, rows_1)) + sum(map(len, passage_rows))

    distillation = torch.zeros((), device=encoder.device)
    if objective.distill_weight and batch.pairs and context_query is not None and context_passage is not None:
        distillation = distill(query_QE @ passage_PE.T, context_query @ context_passage.T, allowed_QP, objective)

    loss_2, accuracy_2 = torch.zeros_like(loss_1), float("nan")
    if objective.demonstrations:
        shown = draw_demonstrations(batch, objective.demonstrations, rng)
        sources = (query_QE.detach(), passage_PE.detach()) if objective.stop_gradient else (query_QE, passage_PE)
        # (k, 2, E) -> (2k, E): query 1, passage 1, query 2, ... as in a Prompt
        soft = [torch.stack([sources[0][d], sources[1][d]], dim=1).flatten(0, 1) for d in shown]
        rows_2 = query_rows([len(d) for d in shown])
        demonstrated_QE = embed(encoder, rows_2, context_query, soft, token_budget=token_budget)
        visible_QP = allowed_QP.clone()
        for i, d in enumerate(shown):
            visible_QP[i, d] = False
        loss_2, accuracy_2 = info_nce(demonstrated_QE @ passage_PE.T, visible_QP, objective)
        tokens += sum(map(len, rows_2))

    weight = 1.0 if batch.pairs else objective.label_weight
    total = weight * (loss_1 + loss_2) + objective.distill_weight * distillation
    return Losses(total, loss_1.item(), loss_2.item(), distillation.item(), accuracy_1, accuracy_2, tokens)


def embed(
    encoder: Encoder,
    rows: Sequence[list[int]],
    context_NC: Tensor | None,
    soft: Sequence[Tensor],
    *,
    token_budget: int,
) -> Tensor:
    """(N, E) unit-length vectors of rows, in order, with gradients. Rows are grouped by length to save padding."""
    parts: list[Tensor] = []
    order: list[np.ndarray] = []
    for indices in batches([len(row) for row in rows], token_budget=token_budget):
        context_BC = context_NC[torch.from_numpy(indices).to(context_NC.device)] if context_NC is not None else None
        soft_SE = torch.cat([soft[i] for i in indices])
        parts.append(encoder.model([rows[i] for i in indices], context_BC=context_BC, soft_SE=soft_SE))
        order.append(indices)
    restore = torch.from_numpy(np.argsort(np.concatenate(order))).to(parts[0].device)
    return torch.cat(parts)[restore]


def draw_demonstrations(batch: TrainBatch, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """For each query 0..`most` other pairs of its group, never one with its own positive or its own query."""
    shown: list[np.ndarray] = []
    for i, k in enumerate(rng.integers(0, most + 1, size=len(batch.queries))):
        others = [
            j
            for j in np.flatnonzero(batch.group_Q == batch.group_Q[i])
            if j != i and batch.passages[j] != batch.passages[i] and batch.queries[j] != batch.queries[i]
        ]
        shown.append(rng.permutation(np.array(others, dtype=np.int64))[:k])
    return shown


def info_nce(scores_QP: Tensor, allowed_QP: Tensor, objective: Objective) -> tuple[Tensor, float]:
    """InfoNCE at `objective.temperature` and in-batch accuracy; the positive of query i is passage i.

    A candidate that scores above its positive by more than the margin is taken for a false negative (Qwen3-Embedding,
    arXiv 2506.05176) and left out.
    """
    Q = len(scores_QP)
    positive_Q1 = scores_QP.diagonal().unsqueeze(1)
    candidates_QP = allowed_QP
    if objective.false_negative_margin is not None:
        candidates_QP = allowed_QP & (scores_QP.detach() <= positive_Q1.detach() + objective.false_negative_margin)
    logits_QP = (scores_QP / objective.temperature).masked_fill(~candidates_QP, float("-inf"))
    target_Q = torch.arange(Q, device=scores_QP.device)
    best_Q = scores_QP.masked_fill(~allowed_QP, float("-inf")).argmax(dim=1)
    return F.cross_entropy(logits_QP, target_Q), (best_Q == target_Q).float().mean().item()


def distill(scores_QP: Tensor, teacher_QP: Tensor, allowed_QP: Tensor, objective: Objective) -> Tensor:
    """KL divergence from the teacher's distribution over the passages of the batch, at `distill_temperature`."""
    temperature = objective.distill_temperature
    student = F.log_softmax((scores_QP / temperature).masked_fill(~allowed_QP, -1e4), dim=1)
    teacher = F.log_softmax((teacher_QP / temperature).masked_fill(~allowed_QP, -1e4), dim=1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")
