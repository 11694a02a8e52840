"""What a training step encodes: the rows of both passes, their demonstrations, and what the teacher says of the texts.

For an encoder whose demonstrations are texts (bge-en-icl, arXiv 2409.15700), pass 2 has the tokens of the pairs where
others have soft slots.

Shapes: Q queries, K queries with demonstrations, P passages, N = Q + P texts, E embedding width, T width of a teacher's
vectors, C of Contextual ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epic_search.encoder.attention import PACKED
from epic_search.encoder.batching import batches
from epic_search.encoder.encoder import Encoder
from epic_search.encoder.prompt import IdPair, Row
from epic_search.errors import UserError
from epic_search.training.pairs import TrainBatch, bare
from epic_search.training.parallel import ALONE, World
from epic_search.training.recipe import Objective
from epic_search.training.teachers import Teacher


@dataclass(frozen=True)
class Passes:
    """One batch, ready to be encoded: the input rows of both passes and who may be whose negative.

    `query_rows` is empty where nothing needs the queries of pass 1. `shown`: for each query the numbers of the pairs
    that demonstrate its task in pass 2, and `demonstrated_rows` the rows with slots for them or, if not `soft_slots`,
    with their texts; both are empty where the objective has no demonstrations. `teacher_rows`: those K of the queries
    that are shown demonstrations, with texts, where a soft encoder learns from them. `teacher_NT`: the teacher's
    vectors of queries and then passages, where the objective asks for them. `context_NC`: their Contextual vectors,
    with the graph that made them where the Contextual encoder learns.
    """

    batch: TrainBatch
    query_rows: list[Row]
    passage_rows: list[Row]
    demonstrated_rows: list[Row]
    teacher_rows: list[Row]
    shown: list[np.ndarray]
    soft_slots: bool
    context_NC: Tensor | None
    teacher_NT: Tensor | None
    allowed_QP: Tensor
    visible_QP: Tensor
    told_Q: Tensor
    shown_Q: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row) for rows in self.sorts for row in rows)

    @property
    def sorts(self) -> tuple[list[Row], ...]:
        """The rows that are encoded together, sort by sort."""
        return self.first_rows, self.demonstrated_rows, self.teacher_rows

    @property
    def first_rows(self) -> list[Row]:
        """All of pass 1, queries before passages: together they fill a batch better than apart."""
        return self.query_rows + self.passage_rows

    @property
    def first_context(self) -> Tensor | None:
        """The Contextual vectors of `first_rows`."""
        if self.context_NC is None or self.query_rows:
            return self.context_NC
        return self.context_NC[len(self.batch.queries) :]

    @property
    def context_query(self) -> Tensor | None:
        """The Contextual vectors of the queries."""
        return self.context_NC[: len(self.batch.queries)] if self.context_NC is not None else None

    def apart(self, first_NE: Tensor) -> tuple[Tensor | None, Tensor]:
        """The vectors of queries (None where pass 1 has none) and of passages, of those of `first_rows`."""
        queries = len(self.query_rows)
        return first_NE[:queries] if queries else None, first_NE[queries:]

    def padding(self, layout: str, *, token_budget: int) -> float:
        """Share of the backbone's input positions that hold no token of a row; 0 where rows are packed."""
        if layout == PACKED:
            return 0.0
        positions = 0
        for rows in self.sorts:
            for group in row_groups(rows, token_budget=token_budget):
                positions += len(group) * max(len(rows[i]) for i in group)
        return 1 - self.tokens / positions

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
    recompute: bool = False,
    world: World = ALONE,
) -> Passes:
    """Tokenise a batch and draw its demonstrations with `rng`; texts are cut at `max_length` tokens.

    `teacher`: whom the objective names, None for the encoder's own Contextual encoder. `recompute`: whether a
    Contextual encoder that learns runs again in the backward pass, which saves its activations' memory. Raises
    UserError where the texts of demonstrations could take more tokens than the encoder reads.
    """
    device = encoder.device
    soft = encoder.config.demonstrations == "soft"
    if objective.text_distill_weight or not soft:
        _require_room(encoder, objective, batch.tasks, max_length=max_length)
    # Whoever reads a text reads the same part of it: decoder, Contextual encoder, teacher.
    queries, query_ids = encoder.cut(batch.queries, max_length=max_length)
    passages, passage_ids = encoder.cut(batch.passages, max_length=max_length)

    def query_rows(demonstrations: Sequence[int | list[IdPair]]) -> list[Row]:
        layouts = [
            encoder.template.query(task=task, demonstrations=k)
            for task, k in zip(batch.tasks, demonstrations, strict=True)
        ]
        return [layout.row(ids) for layout, ids in zip(layouts, query_ids, strict=True)]

    context_NC = contexts(encoder, queries + passages, world, recompute=recompute)
    teacher_NT = None
    if objective.taught and teacher is not None:
        parts = teach(teacher, queries, batch.tasks, world), teach(teacher, passages, None, world)
        teacher_NT = torch.cat(parts).to(device)
    elif objective.taught:
        teacher_NT = context_NC
    shown = draw_demonstrations(batch, objective.demonstrations, rng) if objective.demonstrations else []
    slots = [len(d) for d in shown]
    texts: list[list[IdPair]] = [[(query_ids[j], passage_ids[j]) for j in d] for d in shown]
    taught = query_rows(texts) if objective.text_distill_weight else []
    allowed_QP = torch.from_numpy(batch.allowed_QP).to(device)
    visible_QP = allowed_QP & ~torch.from_numpy(demonstrated(batch, shown)).to(device) if shown else allowed_QP
    return Passes(
        batch=batch,
        query_rows=query_rows([0] * len(query_ids)) if soft or objective.contrast_without or objective.taught else [],
        passage_rows=[encoder.template.passage.row(ids) for ids in passage_ids],
        demonstrated_rows=query_rows(slots if soft else texts) if shown else [],
        teacher_rows=[row for row, k in zip(taught, slots, strict=False) if k],
        shown=shown,
        soft_slots=soft,
        context_NC=context_NC,
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


def contexts(encoder: Encoder, texts: Sequence[str], world: World, *, recompute: bool) -> Tensor | None:
    """(N, C) Contextual vectors of the texts, each made by one of the processes; None for an encoder without them.

    With gradients where the Contextual encoder learns, for all processes: only then do they meet in the backward pass.
    """
    contextual = encoder.model.contextual
    if contextual is None:
        return None
    own = world.share([len(text) for text in texts])
    with torch.set_grad_enabled(contextual.learns):
        own_BC = contextual.encode([texts[i] for i in own], recompute=recompute and contextual.learns)
        return world.gather(own_BC, own, count=len(texts))


def teach(teacher: Teacher, texts: Sequence[str], tasks: Sequence[str | None] | None, world: World) -> Tensor:
    """(N, T) unit-length vectors of a teacher, each made by one of the processes.

    `tasks`: the instruction of each query; None where the texts are passages.
    """
    own = world.share([len(text) for text in texts])
    if tasks is None:
        vectors = teacher.encode_passages([texts[i] for i in own])
    else:
        by_task: dict[str | None, list[int]] = {}
        for place, i in enumerate(own):
            by_task.setdefault(tasks[i], []).append(place)
        parts = [teacher.encode_queries([texts[own[p]] for p in mine], task=task) for task, mine in by_task.items()]
        vectors = np.concatenate(parts)[np.argsort(np.concatenate(list(by_task.values())))]
    return world.gather(torch.from_numpy(vectors), own, count=len(texts)).detach()


def row_groups(rows: Sequence[Row], *, token_budget: int, world: World = ALONE) -> list[np.ndarray]:
    """Numbers of the rows that are encoded together, of those that are this process's share."""
    lengths = [len(row) for row in rows]
    own = world.share(lengths)
    return [own[indices] for indices in batches([lengths[i] for i in own], token_budget=token_budget)]


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
