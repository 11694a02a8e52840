"""Pairs from files, data sets and the standard library, and the single-task batches made of them."""

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epic_search.errors import UserError
from epic_search.training.recipe import PairData
from epic_search.training.recipe_files import expand


@dataclass(frozen=True)
class Pair:
    """A query, a passage that answers it, and passages that do not (hard negatives)."""

    task: str | None
    query: str
    positive: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainBatch:
    """One step's texts: Q queries, P >= Q passages of which passage i is the positive of query i.

    `group_Q`: demonstrations of a query come from its own group. `allowed_QP`: passages that may count for a query, its
    positive and everything known not to be one. `untold_Q`: queries of which only demonstrations tell what is wanted.
    `pairs`: False for batches from labels, where likeness in meaning is not the relation.
    """

    source: str
    queries: list[str]
    tasks: list[str | None]
    group_Q: np.ndarray
    passages: list[str]
    allowed_QP: np.ndarray
    untold_Q: np.ndarray
    pairs: bool


class PairSource:
    """The pairs of one task in one file: batches without repetition inside an epoch."""

    def __init__(
        self, name: str, pairs: Sequence[Pair], *, weight: float, negatives: int, instruction_dropout: float
    ) -> None:
        self.name = name
        self.pairs = pairs
        self.weight = weight
        self._negatives = negatives
        self._dropout = instruction_dropout

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> TrainBatch:
        """The pairs at `indices` as a batch. Queries that lose their instruction form a second group."""
        chosen = [self.pairs[i] for i in indices]
        dropped_Q = rng.random(len(chosen)) < self._dropout
        negatives = [text for pair in chosen for text in _some(pair.negatives, self._negatives, rng)]
        passages = [pair.positive for pair in chosen] + negatives
        return TrainBatch(
            source=self.name,
            queries=[pair.query for pair in chosen],
            tasks=[None if dropped else pair.task for pair, dropped in zip(chosen, dropped_Q, strict=True)],
            group_Q=dropped_Q.astype(np.int64),
            passages=passages,
            allowed_QP=_not_duplicates([pair.query for pair in chosen], passages),
            untold_Q=np.zeros(len(chosen), dtype=bool),
            pairs=True,
        )


def _some(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    if len(texts) <= count:
        return list(texts)
    return [texts[i] for i in rng.choice(len(texts), size=count, replace=False)]


def _not_duplicates(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
    """(Q, P) True where passage j is the positive of query i (j = i) or says something else than it and the query."""
    query_Q = np.array([hash(bare(text)) for text in queries])
    passage_P = np.array([hash(bare(text)) for text in passages])
    Q = len(queries)
    allowed_QP = (passage_P[None] != passage_P[:Q, None]) & (passage_P[None] != query_Q[:, None])
    allowed_QP[np.arange(Q), np.arange(Q)] = True
    return allowed_QP


def bare(text: str) -> str:
    """Letters and digits only: texts that agree in these are near-duplicates."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def load_pairs(data: PairData) -> dict[str, list[Pair]]:
    """Pairs by source name, one source for each task of each file; raises UserError where a row cannot be read."""
    by_source: dict[str, list[Pair]] = defaultdict(list)
    for origin, pair in _rows(data):
        by_source[f"{origin}: {pair.task}" if pair.task else origin].append(pair)
    if data.limit is not None:
        return {name: pairs[: data.limit] for name, pairs in by_source.items()}
    return dict(by_source)


def _rows(data: PairData) -> Iterator[tuple[str, Pair]]:
    if data.files:
        for path in expand(data.files):
            origin = path.name.removesuffix(".gz").removesuffix(".jsonl")
            for number, row in read_jsonl(path):
                yield origin, pair_of_row(row, data, f"{path}, line {number}")
    elif data.dataset:
        for number, row in enumerate(_dataset(data)):
            yield data.dataset, pair_of_row(row, data, f"row {number} of {data.dataset}")
    else:
        from epic_search import stdlib

        for query, positive in stdlib.pairs():
            yield "python-stdlib", Pair(data.task, query, positive)


def _dataset(data: PairData) -> Iterable[dict]:
    from datasets import load_dataset

    assert data.dataset is not None
    try:
        return load_dataset(data.dataset, data.subset, split=data.split)
    except (OSError, ValueError) as error:
        raise UserError(f"the data set {data.dataset} (split {data.split}) could not be loaded: {error}") from error


def pair_of_row(row: dict, data: PairData, place: str) -> Pair:
    """The pair that a row of training data holds; raises UserError, naming its `place`, where it holds none."""

    def column(name: str, default: object = None) -> object:
        return row.get(data.columns.get(name, name), default)  # type: ignore[call-overload]

    query, positive, negatives = column("query"), column("positive"), column("negatives", [])
    negatives = [negatives] if isinstance(negatives, str) else negatives or []
    texts = [query, positive, *negatives] if isinstance(negatives, list) else [None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(
            f"{place}: a pair needs the texts query and positive, and a list of texts as negatives, not {sorted(row)}"
        )
    task = column("task") or data.task
    if task is not None and not isinstance(task, str):
        raise UserError(f"{place}: the task of a pair must be a text, not {task!r}")
    return Pair(task, query, positive, tuple(negatives))  # type: ignore[arg-type]


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line of a .jsonl or .jsonl.gz file; raises UserError at a line that is none."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: expected a JSON object")
                yield number, row
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
