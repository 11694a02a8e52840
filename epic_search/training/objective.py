"""The EPIC objective (arXiv 2605.01372, as reconstructed): one encoder, two passes, one contrastive loss for each.

Pass 1 encodes queries without demonstrations, and passages. Pass 2 encodes the queries again with demonstrations that
are other pairs of the batch, each as two soft tokens made of pass-1 vectors: reading them is what it trains.

For an encoder whose demonstrations are texts (bge-en-icl, arXiv 2409.15700), pass 2 has the tokens of the same pairs in
these places. A soft encoder can be taught by what it makes of the texts itself (`text_distill_weight`).

Shapes: Q queries, K queries with demonstrations, P passages, N = Q + P texts, E embedding width, T width of a teacher's
vectors.
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
from epic_search.encoder.prompt import IdPair, Row
from epic_search.errors import UserError
from epic_search.training.pairs import TrainBatch, bare
from epic_search.training.recipe import Objective
from epic_search.training.teachers import Teacher


@dataclass(frozen=True)
class Losses:
    """`total` carries the gradient; the rest is for the log, None where no query of the batch counts."""

    total: Tensor
    without: float | None
    with_demonstrations: float | None
    distillation: float | None
    text_distillation: float | None
    accuracy_without: float | None
    accuracy_with: float | None
    tokens: int


@dataclass(frozen=True)
class Passes:
    """One batch, ready to be encoded: the input rows of both passes and who may be whose negative.

    `query_rows` is empty where nothing needs the queries of pass 1. `shown`: for each query the numbers of the pairs
    that demonstrate its task in pass 2, and `demonstrated_rows` the rows with slots for them or, if not `soft_slots`,
    with their texts; both are empty where the objective has no demonstrations. `text_rows`: those K of the queries that
    are shown demonstrations, with texts, where a soft encoder learns from them. `teacher_NT`: the teacher's vectors of
    queries and then passages, where the objective asks for them.
    """

    batch: TrainBatch
    query_rows: list[Row]
    passage_rows: list[Row]
    demonstrated_rows: list[Row]
    text_rows: list[Row]
    shown: list[np.ndarray]
    soft_slots: bool
    context_query: Tensor | None
    context_passage: Tensor | None
    teacher_NT: Tensor | None
    allowed_QP: Tensor
    visible_QP: Tensor
    told_Q: Tensor
    shown_Q: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        sorts = (self.query_rows, self.passage_rows, self.demonstrated_rows, self.text_rows)
        return sum(len(row) for rows in sorts for row in rows)

    def soft(self, query_QE: Tensor | None, passage_PE: Tensor, *, stop_gradient: bool) -> list[Tensor] | None:
        """(2k, E) for each query: query 1, passage 1, query 2, ... of its demonstrations, as in a Prompt.

        None where demonstrations are texts.
        """
        if not self.soft_slots:
            return None
        assert query_QE is not None, "soft demonstrations are made of pass-1 vectors"
        if stop_gradient:
            query_QE, passage_PE = query_QE.detach(), passage_PE.detach()
        return [torch.stack([query_QE[d], passage_PE[d]], dim=1).flatten(0, 1) for d in self.shown]


def prepare(
    encoder: Encoder,
    batch: TrainBatch,
    objective: Objective,
    *,
    rng: np.random.Generator,
    max_length: int,
    teacher: Teacher | None = None,
) -> Passes:
    """Tokenise a batch and draw its demonstrations with `rng`; texts are cut at `max_length` tokens.

    `teacher`: whom the objective names, None for the encoder's own Contextual encoder. Raises UserError where the texts
    of demonstrations could take more tokens than the encoder reads.
    """
    device = encoder.device
    soft = encoder.config.demonstrations == "soft"
    if objective.text_distill_weight or not soft:
        _require_room(encoder, objective, batch.tasks, max_length=max_length)
    # Whoever reads a text reads the same part of it: decoder, Contextual encoder, teacher.
    queries = encoder.cut(batch.queries, max_length=max_length)
    passages = encoder.cut(batch.passages, max_length=max_length)
    query_ids = encoder.token_ids(queries, max_length=max_length)
    passage_ids = encoder.token_ids(passages, max_length=max_length)

    def query_rows(demonstrations: Sequence[int | list[IdPair]]) -> list[Row]:
        layouts = [
            encoder.template.query(task=task, demonstrations=k)
            for task, k in zip(batch.tasks, demonstrations, strict=True)
        ]
        return [layout.row(ids) for layout, ids in zip(layouts, query_ids, strict=True)]

    context_query, context_passage = encoder.context(queries), encoder.context(passages)
    teacher_NT = None
    if objective.taught and teacher is not None:
        teacher_NT = torch.from_numpy(teach(teacher, queries, batch.tasks, passages)).to(device)
    elif objective.taught and context_query is not None and context_passage is not None:
        teacher_NT = torch.cat([context_query, context_passage])
    shown = draw_demonstrations(batch, objective.demonstrations, rng) if objective.demonstrations else []
    slots = [len(d) for d in shown]
    texts: list[list[IdPair]] = [[(query_ids[j], passage_ids[j]) for j in d] for d in shown]
    as_texts = query_rows(texts) if objective.text_distill_weight else []
    allowed_QP = torch.from_numpy(batch.allowed_QP).to(device)
    visible_QP = allowed_QP & ~torch.from_numpy(demonstrated(batch, shown)).to(device) if shown else allowed_QP
    return Passes(
        batch=batch,
        query_rows=query_rows([0] * len(query_ids)) if soft or objective.without_used else [],
        passage_rows=[encoder.template.passage.row(ids) for ids in passage_ids],
        demonstrated_rows=query_rows(slots if soft else texts) if shown else [],
        text_rows=[row for row, k in zip(as_texts, slots, strict=False) if k],
        shown=shown,
        soft_slots=soft,
        context_query=context_query,
        context_passage=context_passage,
        teacher_NT=teacher_NT,
        allowed_QP=allowed_QP,
        visible_QP=visible_QP,
        told_Q=~torch.from_numpy(batch.untold_Q).to(device),
        shown_Q=torch.tensor(slots, device=device) > 0,
    )


def _require_room(encoder: Encoder, objective: Objective, tasks: Sequence[str | None], *, max_length: int) -> None:
    """Raise UserError where the longest texts would not fit; bge-en-icl's code would leave demonstrations out."""
    text = range(max_length)
    longest = max((task or "" for task in tasks), key=len)
    layout = encoder.template.query(task=longest, demonstrations=[(text, text)] * objective.demonstrations)
    tokens = len(layout) + max_length
    if tokens > encoder.context_length:
        raise UserError(
            f"a query with {objective.demonstrations} demonstrations as texts of {max_length} tokens takes {tokens} "
            f"tokens, and {encoder.name} reads {encoder.context_length}; lower objective.demonstrations or "
            "data.max_length"
        )


def epic_losses(encoder: Encoder, passes: Passes, objective: Objective, *, token_budget: int) -> Losses:
    """Encode both passes, `token_budget` tokens at a time, and compute their losses."""
    query_QE = None
    if passes.query_rows:
        query_QE = embed(encoder, passes.query_rows, passes.context_query, token_budget=token_budget)
    passage_PE = embed(encoder, passes.passage_rows, passes.context_passage, token_budget=token_budget)
    demonstrated_QE = None
    if passes.demonstrated_rows:
        soft = passes.soft(query_QE, passage_PE, stop_gradient=objective.stop_gradient)
        rows, context = passes.demonstrated_rows, passes.context_query
        demonstrated_QE = embed(encoder, rows, context, soft, token_budget=token_budget)
    text_KE = embed_texts(encoder, passes, token_budget=token_budget)
    halves = encoder.config.pooling == "concat"
    return losses_of_vectors(passes, query_QE, passage_PE, demonstrated_QE, text_KE, objective, halves=halves)


def losses_of_vectors(
    passes: Passes,
    query_QE: Tensor | None,
    passage_PE: Tensor,
    demonstrated_QE: Tensor | None,
    text_KE: Tensor | None,
    objective: Objective,
    *,
    halves: bool,
) -> Losses:
    """The losses of both passes, of their vectors alone. `halves`: vectors are a Contextual and an EOS half."""
    total = passage_PE.new_zeros(())
    loss_1, accuracy_1, distillation = None, None, None
    if query_QE is not None:
        loss_1, accuracy_1 = info_nce(query_QE @ passage_PE.T, passes.allowed_QP, passes.told_Q, objective)
        if halves and objective.half_weight:
            loss_1 = loss_1 + halves_loss(query_QE, passage_PE, passes.allowed_QP, passes.told_Q, objective)
        total = objective.contrast_without * loss_1
        if passes.teacher_NT is not None:
            distillation = distill(torch.cat([query_QE, passage_PE]), passes.teacher_NT, objective)

    loss_2, accuracy_2, text_distillation = None, None, None
    if demonstrated_QE is not None:
        told_Q = passes.told_Q | passes.shown_Q
        loss_2, accuracy_2 = info_nce(demonstrated_QE @ passage_PE.T, passes.visible_QP, told_Q, objective)
        if halves and objective.half_weight:
            loss_2 = loss_2 + halves_loss(demonstrated_QE, passage_PE, passes.visible_QP, told_Q, objective)
        total = total + objective.contrast_with * loss_2
        if text_KE is not None:
            # The passages are the same for both: only the query is pulled.
            fixed_PE, shown_Q = passage_PE.detach(), passes.shown_Q
            scores_KP, wanted_KP = demonstrated_QE[shown_Q] @ fixed_PE.T, text_KE @ fixed_PE.T
            text_distillation = divergence(scores_KP, wanted_KP, ~passes.visible_QP[shown_Q], objective)
            total = total + objective.text_distill_weight * text_distillation
    if not passes.batch.pairs:
        total = objective.label_weight * total

    return Losses(
        total if distillation is None else total + distillation,
        without=loss_1.item() if loss_1 is not None and accuracy_1 is not None else None,
        with_demonstrations=loss_2.item() if loss_2 is not None and accuracy_2 is not None else None,
        distillation=distillation.item() if distillation is not None else None,
        text_distillation=text_distillation.item() if text_distillation is not None else None,
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
) -> Tensor:
    """(N, E) unit-length vectors of rows, in order, with gradients. Rows are grouped by length to save padding.

    `soft`: for each row the vectors of its soft slots; None where no row has any.
    """
    groups = row_groups(rows, token_budget=token_budget)
    parts = [embed_group(encoder, rows, context_NC, soft, indices) for indices in groups]
    restore = torch.from_numpy(np.argsort(np.concatenate(groups))).to(parts[0].device)
    return torch.cat(parts)[restore]


@torch.no_grad()
def embed_texts(encoder: Encoder, passes: Passes, *, token_budget: int) -> Tensor | None:
    """(K, E) vectors of the queries with demonstrations, with these as texts; None where nobody learns from them."""
    if not passes.text_rows:
        return None
    context_QC = passes.context_query
    context_KC = context_QC[passes.shown_Q] if context_QC is not None else None
    return embed(encoder, passes.text_rows, context_KC, token_budget=token_budget)


def row_groups(rows: Sequence[Row], *, token_budget: int) -> list[np.ndarray]:
    """Numbers of the rows that are encoded together."""
    return list(batches([len(row) for row in rows], token_budget=token_budget))


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


def distill(vectors_NE: Tensor, teacher_NT: Tensor, objective: Objective) -> Tensor:
    """How far the likenesses of all texts of a batch are from those that the teacher sees (relational distillation).

    `distill_weight` times the KL divergence from the teacher's distribution of each text over all others, at
    `distill_temperature` (the near ones count), plus `geometry_weight` times the mean squared difference of cosines
    (all count alike). Only likenesses meet, so that widths may differ (arXiv 1904.05068).
    """
    own_NN = torch.eye(len(vectors_NE), dtype=torch.bool, device=vectors_NE.device)
    student_NN, wanted_NN = vectors_NE @ vectors_NE.T, teacher_NT @ teacher_NT.T
    squares = (student_NN - wanted_NN)[~own_NN].square().mean()
    return (
        objective.distill_weight * divergence(student_NN, wanted_NN, own_NN, objective)
        + objective.geometry_weight * squares
    )


def divergence(scores_NP: Tensor, wanted_NP: Tensor, hidden_NP: Tensor, objective: Objective) -> Tensor:
    """Mean KL divergence from the wanted distributions over what is not hidden, at `distill_temperature`."""

    def distribution(scores: Tensor) -> Tensor:
        return F.log_softmax((scores / objective.distill_temperature).masked_fill(hidden_NP, -1e4), dim=1)

    return F.kl_div(distribution(scores_NP), distribution(wanted_NP), log_target=True, reduction="batchmean")


def teach(teacher: Teacher, queries: Sequence[str], tasks: Sequence[str | None], passages: Sequence[str]) -> np.ndarray:
    """(Q + P, T) float32 unit-length vectors of a teacher, each query under its own instruction."""
    by_task: dict[str | None, list[int]] = {}
    for i, task in enumerate(tasks):
        by_task.setdefault(task, []).append(i)
    parts = [teacher.encode_queries([queries[i] for i in mine], task=task) for task, mine in by_task.items()]
    order = np.argsort(np.concatenate(list(by_task.values())))
    return np.concatenate([np.concatenate(parts)[order], teacher.encode_passages(passages)])
