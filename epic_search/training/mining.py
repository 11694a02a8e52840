"""Hard negatives for training pairs, mined with our own index.

The passages of a task are indexed and each query searches them. What it finds and is no answer is a candidate, kept
where the teacher scores it at most `margin` times as high as the pair's own positive: better ones are answers that
nobody has marked, more often than not. This is the positive-aware rule of NV-Retriever (arXiv 2407.15831, TopK-PercPos
with 95 %), which NV-Embed-v2 and others train with.
"""

import gzip
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from epic_search.encoder import Encoder
from epic_search.errors import UserError
from epic_search.index import IndexProgress, Searcher, index_corpus
from epic_search.training.pairs import Pair, bare, pair_of_row, read_jsonl
from epic_search.training.recipe import PairData
from epic_search.training.teachers import Teacher

INDEX = "passages"
QUERIES_AT_ONCE = 256
BELOW_ALL = -2.0  # lower than any cosine
ENDINGS = (".jsonl", ".jsonl.gz")
Stage = Literal["indexing", "teacher", "searching"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is mined: up to `negatives` for each pair out of the `depth` passages nearest to its query.

    `margin`: the highest score of a negative as a share of its positive's. `skip`: the nearest candidates of each query
    to leave out. `replace`: mined negatives take the place of those the pairs have, else they come after them.
    """

    negatives: int = 7
    depth: int = 100
    margin: float = 0.95
    skip: int = 0
    replace: bool = False

    def __post_init__(self) -> None:
        if self.depth < self.negatives + self.skip:
            raise UserError(
                f"the {self.depth} nearest passages cannot give {self.negatives} negatives after skipping {self.skip}; "
                f"raise --depth to {self.negatives + self.skip} or more"
            )


@dataclass(frozen=True)
class MiningProgress:
    """How far mining is: which task, and how much of the passages or queries of this stage."""

    task: int
    tasks: int
    stage: Stage
    done: int
    total: int


@dataclass
class Mined:
    """What came of one task.

    `found`: pairs whose positive was among the nearest passages. `counts`: how many pairs got how many new negatives.
    `judged`: candidates that the rule was asked about until a pair had enough, and `dropped` those it refused.
    `unindexed`: passages that the index cannot hold (see `epic_search.index.corpus`).
    """

    task: str | None
    pairs: int
    passages: int
    unindexed: int = 0
    found: int = 0
    judged: int = 0
    dropped: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def negatives(self) -> int:
        """How many negatives were mined."""
        return sum(count * pairs for count, pairs in self.counts.items())

    @property
    def dropped_share(self) -> float:
        """Share of the judged candidates that the rule refused; 0 where there were none."""
        return self.dropped / self.judged if self.judged else 0.0


Progress = Callable[[MiningProgress], None]
Tell = Callable[[Stage, int, int], None]


def mine(
    files: Sequence[Path],
    *,
    out: Path,
    encoder: Encoder,
    teacher: Teacher | None = None,
    rules: Rules | None = None,
    progress: Progress = lambda _: None,
) -> list[Mined]:
    """Write the rows of pair files to `out`, in their order, with mined negatives; returns what came of each task.

    Without a teacher the encoder itself judges: its scores are those of the index. `out` appears whole or not at all.
    Raises UserError for a row that is no pair, and for an `out` that is one of the files, has another ending than
    ENDINGS or cannot be written.
    """
    rules = rules or Rules()
    check_output(out, files=files)
    with _replacing(out) as file:
        rows, pairs = _read(files)
        by_task: dict[str | None, list[int]] = {}
        for i, pair in enumerate(pairs):
            by_task.setdefault(pair.task, []).append(i)
        results: list[Mined] = []
        mined: list[list[str]] = [[] for _ in pairs]
        for number, (task, places) in enumerate(by_task.items(), start=1):
            tell = _teller(progress, task=number, tasks=len(by_task))
            miner = _TaskMiner([pairs[i] for i in places], task=task, rules=rules, tell=tell)
            for i, negatives in zip(places, miner.mine(encoder, teacher), strict=True):
                mined[i] = negatives
            results.append(miner.result)
        for row, pair, new in zip(rows, pairs, mined, strict=True):
            old = () if rules.replace else pair.negatives
            file.write(json.dumps(row | {"negatives": [*old, *new]}, ensure_ascii=False) + "\n")
    return results


def check_output(out: Path, *, files: Sequence[Path]) -> None:
    """Raise UserError when `out` is one of the files to mine from or has another ending than ENDINGS."""
    if not out.name.endswith(ENDINGS):
        raise UserError(f"the output {out} must end in {' or '.join(ENDINGS)}; correct --out")
    if any(out.resolve() == path.resolve() for path in files):
        raise UserError(f"{out} is one of the files to mine from; choose another --out")


class _TaskMiner:
    """The pairs of one task, whose passages are one another's candidates. Passages go by their number."""

    def __init__(self, pairs: Sequence[Pair], *, task: str | None, rules: Rules, tell: Tell) -> None:
        self._pairs = pairs
        self._rules = rules
        self._tell = tell
        self._passages = list(dict.fromkeys(text for pair in pairs for text in (pair.positive, *pair.negatives)))
        self._bare = [bare(text) for text in self._passages]
        self._queries = list(dict.fromkeys(pair.query for pair in pairs))
        # What says the same as a query, or as anything that answers it, is no negative of it.
        self._answers: dict[str, set[str]] = {}
        for pair in pairs:
            self._answers.setdefault(bare(pair.query), {bare(pair.query)}).add(bare(pair.positive))
        self.result = Mined(task, len(pairs), len(self._passages))

    def mine(self, encoder: Encoder, teacher: Teacher | None) -> list[list[str]]:
        """The new negatives of each pair, nearest first."""
        askers: dict[str, list[int]] = {}
        for i, pair in enumerate(self._pairs):
            askers.setdefault(pair.query, []).append(i)
        number = {text: i for i, text in enumerate(self._passages)}
        chosen: list[list[str]] = [[] for _ in self._pairs]
        with tempfile.TemporaryDirectory(prefix="epic-search-mining-") as home:
            self._index(encoder, Path(home))
            vectors = self._vectors(teacher) if teacher is not None else None
            for query, scores in self._nearest(encoder, Path(home)):
                judged = scores
                if vectors is not None:
                    passages = list(dict.fromkeys([*scores, *(number[self._pairs[i].positive] for i in askers[query])]))
                    judged = vectors.scores(query, passages)
                for i in askers[query]:
                    own = number[self._pairs[i].positive]
                    self.result.found += own in scores
                    # A positive that is not among the nearest scores lower than all of them.
                    new = self._choose(self._pairs[i], scores, judged, judged.get(own, BELOW_ALL))
                    self.result.counts[len(new)] += 1
                    chosen[i] = [self._passages[place] for place in new]
        return chosen

    def _index(self, encoder: Encoder, home: Path) -> None:
        corpus = home / "passages.jsonl"
        with corpus.open("w", encoding="utf-8") as lines:
            for i, text in enumerate(self._passages):
                lines.write(json.dumps({"_id": str(i), "text": text}) + "\n")

        def indexed(seen: IndexProgress) -> None:
            self._tell("indexing", seen.documents, len(self._passages))

        report = index_corpus(corpus, name=INDEX, encoder=encoder, home=home, progress=indexed)
        self.result.unindexed = report.skipped

    def _nearest(self, encoder: Encoder, home: Path) -> Iterator[tuple[str, dict[int, float]]]:
        """Each query with its nearest passages and the encoder's scores of them, nearest first."""
        prompt = encoder.prompt(task=self.result.task)
        with Searcher.open(INDEX, home=home, encoder=encoder) as searcher:
            for first in range(0, len(self._queries), QUERIES_AT_ONCE):
                some = self._queries[first : first + QUERIES_AT_ONCE]
                found = searcher.search(some, k=self._rules.depth, mode="dense", prompt=prompt, texts=False)
                for query, hits in zip(some, found, strict=True):
                    yield query, {int(hit.id): hit.score for hit in hits}
                self._tell("searching", first + len(some), len(self._queries))

    def _vectors(self, teacher: Teacher) -> "_Vectors":
        done, total = 0, len(self._queries) + len(self._passages)

        def more(count: int) -> None:
            nonlocal done
            done += count
            self._tell("teacher", done, total)

        queries_QE = teacher.encode_queries(self._queries, task=self.result.task, progress=more)
        passages_PE = teacher.encode_passages(self._passages, progress=more)
        return _Vectors({query: i for i, query in enumerate(self._queries)}, queries_QE, passages_PE)

    def _choose(self, pair: Pair, candidates: Iterable[int], scores: dict[int, float], own_score: float) -> list[int]:
        """Numbers of the candidates (nearest first) that become negatives of a pair, by their scores and its own."""
        rules, result = self._rules, self.result
        # For a score above zero, margin * score; and below the score of the positive in any case.
        highest = own_score - (1 - rules.margin) * abs(own_score)
        seen = self._answers[bare(pair.query)] | (set() if rules.replace else {bare(text) for text in pair.negatives})
        skipped = 0
        chosen: list[int] = []
        for candidate in candidates:
            if len(chosen) == rules.negatives:
                break
            if self._bare[candidate] in seen:
                continue
            seen.add(self._bare[candidate])
            if skipped < rules.skip:
                skipped += 1
                continue
            result.judged += 1
            if scores[candidate] <= highest:
                chosen.append(candidate)
            else:
                result.dropped += 1
        return chosen


@dataclass(frozen=True)
class _Vectors:
    """A teacher's vectors of all queries and passages of a task."""

    query_number: dict[str, int]
    queries_QE: np.ndarray
    passages_PE: np.ndarray

    def scores(self, query: str, passages: Sequence[int]) -> dict[int, float]:
        """The teacher's score of each of these passages with a query."""
        query_E = self.queries_QE[self.query_number[query]]
        return dict(zip(passages, (self.passages_PE[passages] @ query_E).tolist(), strict=True))


def _teller(progress: Progress, *, task: int, tasks: int) -> Tell:
    return lambda stage, done, total: progress(MiningProgress(task, tasks, stage, done, total))


def _read(files: Sequence[Path]) -> tuple[list[dict], list[Pair]]:
    """The rows of all files as they are, and as pairs."""
    data = PairData(files=[str(path) for path in files])
    rows, pairs = [], []
    for path in files:
        for number, row in read_jsonl(path):
            rows.append(row)
            pairs.append(pair_of_row(row, data, f"{path}, line {number}"))
    if not pairs:
        raise UserError(f"there is no pair in {', '.join(map(str, files))}; each line is {{query, positive}} at least")
    return rows, pairs


@contextmanager
def _replacing(out: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `out` when the block ends well, and leaves nothing when it does not."""
    fresh = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        raw = fresh.open("wb")
    except OSError as error:
        raise UserError(f"the output {out} cannot be written: {error.strerror}; choose another --out") from error
    try:
        with raw:
            # Without a time in it, the same pairs make the same file.
            target = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if out.suffix == ".gz" else raw
            # In JSON, the backslash form of a character that UTF-8 lacks is that character.
            with io.TextIOWrapper(target, encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                yield file
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
