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
from epic_search.training.parallel import ALONE, World
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


@dataclass(frozen=True)
class Passes:
    """One batch, ready to be encoded: the input rows of both passes and who may be whose negative.

    `shown`: for each query the numbers of the pairs that demonstrate its task in pass 2, and `demonstrated_rows` the
    rows with slots for them; both are empty where the objective has no demonstrations.
    """

    batch: TrainBatch
    query_rows: list[Row]
    passage_rows: list[Row]
    demonstrated_rows: list[Row]
    shown: list[np.ndarray]
    context_query: Tensor | None
    context_passage: Tensor | None
    allowed_QP: Tensor
    visible_QP: Tensor
    told_Q: Tensor
    shown_Q: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row) for rows in (self.query_rows, self.passage_rows, self.demonstrated_rows) for row in rows)

    def soft(self, query_QE: Tensor, passage_PE: Tensor) -> list[Tensor]:
        """(2k, E) for each query: query 1, passage 1, query 2, ... of its demonstrations, as in a Prompt."""
        return [torch.stack([query_QE[d], passage_PE[d]], dim=1).flatten(0, 1) for d in self.shown]


def prepare(
    encoder: Encoder,
    batch: TrainBatch,
    objective: Objective,
    *,
    rng: np.random.Generator,
    max_length: int,
    world: World = ALONE,
) -> Passes:
    """Tokenise a batch and draw its demonstrations with `rng`; texts are cut at `max_length` tokens."""
    device = encoder.device
    query_ids = encoder.token_ids(batch.queries, max_length=max_length)
    passage_ids = encoder.token_ids(batch.passages, max_length=max_length)

    def query_rows(demonstrations: Sequence[int]) -> list[Row]:
        layouts = [
            encoder.template.query(task=task, demonstrations=k)
            for task, k in zip(batch.tasks, demonstrations, strict=True)
        ]
        return [layout.row(ids) for layout, ids in zip(layouts, query_ids, strict=True)]

    shown = draw_demonstrations(batch, objective.demonstrations, rng) if objective.demonstrations else []
    allowed_QP = torch.from_numpy(batch.allowed_QP).to(device)
    visible_QP = allowed_QP & ~torch.from_numpy(demonstrated(batch, shown)).to(device) if shown else allowed_QP
    return Passes(
        batch=batch,
        query_rows=query_rows([0] * len(query_ids)),
        passage_rows=[encoder.template.passage.row(ids) for ids in passage_ids],
        demonstrated_rows=query_rows([len(d) for d in shown]) if shown else [],
        shown=shown,
        context_query=contexts(encoder, batch.queries, world),
        context_passage=contexts(encoder, batch.passages, world),
        allowed_QP=allowed_QP,
        visible_QP=visible_QP,
        told_Q=~torch.from_numpy(batch.untold_Q).to(device),
        shown_Q=torch.tensor([len(d) > 0 for d in shown], dtype=torch.bool, device=device),
    )


@torch.no_grad()
def contexts(encoder: Encoder, texts: Sequence[str], world: World) -> Tensor | None:
    """(N, C) Contextual vectors of the texts, each made by one of the processes; None for an encoder without them."""
    own = world.share([len(text) for text in texts])
    own_BC = encoder.context([texts[i] for i in own])
    return world.gather(own_BC, own, count=len(texts)) if own_BC is not None else None


def epic_losses(
    encoder: Encoder, passes: Passes, objective: Objective, *, token_budget: int, world: World = ALONE
) -> Losses:
    """Encode both passes, `token_budget` tokens at a time in each process, and compute their losses."""
    query_QE = embed(encoder, passes.query_rows, passes.context_query, token_budget=token_budget, world=world)
    passage_PE = embed(encoder, passes.passage_rows, passes.context_passage, token_budget=token_budget, world=world)
    demonstrated_QE = None
    if passes.demonstrated_rows:
        sources = (query_QE.detach(), passage_PE.detach()) if objective.stop_gradient else (query_QE, passage_PE)
        soft = passes.soft(*sources)
        rows, context = passes.demonstrated_rows, passes.context_query
        demonstrated_QE = embed(encoder, rows, context, soft, token_budget=token_budget, world=world)
    halves = encoder.config.pooling == "concat"
    return losses_of_vectors(passes, query_QE, passage_PE, demonstrated_QE, objective, halves=halves)


def losses_of_vectors(
    passes: Passes,
    query_QE: Tensor,
    passage_PE: Tensor,
    demonstrated_QE: Tensor | None,
    objective: Objective,
    *,
    halves: bool,
) -> Losses:
    """The losses of both passes, of their vectors alone. `halves`: vectors are a Contextual and an EOS half."""
    scores_QP = query_QE @ passage_PE.T
    loss_1, accuracy_1 = info_nce(scores_QP, passes.allowed_QP, passes.told_Q, objective)
    if halves and objective.half_weight:
        loss_1 = loss_1 + halves_loss(query_QE, passage_PE, passes.allowed_QP, passes.told_Q, objective)
    total = loss_1

    distillation = None
    context_query, context_passage = passes.context_query, passes.context_passage
    if objective.distill_weight and passes.batch.pairs and context_query is not None and context_passage is not None:
        distillation = distill(scores_QP, context_query @ context_passage.T, passes.allowed_QP, objective)
        total = total + objective.distill_weight * distillation

    loss_2, accuracy_2 = None, None
    if demonstrated_QE is not None:
        told_Q = passes.told_Q | passes.shown_Q
        loss_2, accuracy_2 = info_nce(demonstrated_QE @ passage_PE.T, passes.visible_QP, told_Q, objective)
        if halves and objective.half_weight:
            loss_2 = loss_2 + halves_loss(demonstrated_QE, passage_PE, passes.visible_QP, told_Q, objective)
        total = total + loss_2

    return Losses(
        total if passes.batch.pairs else objective.label_weight * total,
        without=loss_1.item() if accuracy_1 is not None else None,
        with_demonstrations=loss_2.item() if loss_2 is not None and accuracy_2 is not None else None,
        distillation=distillation.item() if distillation is not None else None,
        accuracy_without=accuracy_1,
        accuracy_with=accuracy_2,
        tokens=passes.tokens,
    )


def embed(
    encoder: Encoder,
    rows: Sequence[Row],
    context_NC: Tensor | None,
    soft: Sequence[Tensor] | None = None,
    *,
    token_budget: int,
    world: World = ALONE,
) -> Tensor:
    """(N, E) unit-length vectors of rows, in order, with gradients. Rows are grouped by length to save padding.

    `soft`: for each row the vectors of its soft slots; None where no row has any.
    """
    groups = row_groups(rows, token_budget=token_budget, world=world)
    parts = [embed_group(encoder, rows, context_NC, soft, indices) for indices in groups]
    return world.gather(torch.cat(parts), np.concatenate(groups), count=len(rows))


def row_groups(rows: Sequence[Row], *, token_budget: int, world: World) -> list[np.ndarray]:
    """Numbers of the rows that are encoded together, of those that are this process's share."""
    lengths = [len(row) for row in rows]
    own = world.share(lengths)
    return [own[indices] for indices in batches([lengths[i] for i in own], token_budget=token_budget)]


def embed_group(
    encoder: Encoder,
    rows: Sequence[Row],
    context_NC: Tensor | None,
    soft: Sequence[Tensor] | None,
    indices: np.ndarray,
) -> Tensor:
    """(len(indices), E) unit-length vectors of some of the rows, with gradients."""
    mixed = encoder.dtype == torch.bfloat16
    context_BC = context_NC[torch.from_numpy(indices).to(context_NC.device)] if context_NC is not None else None
    none = torch.empty(0, encoder.dim, device=encoder.device)
    soft_SE = torch.cat([soft[i] for i in indices]) if soft is not None else none
    # Autocast already gives LoRA's float32 weights the inputs they need; peft's own casts would copy every
    # activation. Scores and losses stay outside: at a temperature of 0.02, bfloat16 is a fifth of a logit coarse.
    with (
        torch.autocast(encoder.device.type, dtype=torch.bfloat16, enabled=mixed),
        disable_input_dtype_casting(encoder.model.backbone, active=mixed),
    ):
        vectors_BE: Tensor = encoder.model([rows[i] for i in indices], context_BC=context_BC, soft_SE=soft_SE)
    return vectors_BE


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
