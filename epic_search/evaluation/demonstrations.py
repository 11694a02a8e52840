"""Demonstrations of an evaluation task: taken from its training split or a file, never from its test, and controls.

Four conditions beside "none": the true pairs, and three controls that share their number and their place in the prompt.
`shuffled` pairs each query with the passage of another pair, `wrong-task` shows true pairs of a task that nobody
measures here (countries and their capitals), and `random` puts random unit vectors in the place of the true ones.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from epic_search.encoder import Demonstration, Encoder, Prompt
from epic_search.errors import UserError
from epic_search.evaluation.kinds import Control, Kind
from epic_search.evaluation.tasks import PairFile
from epic_search.training.pairs import read_jsonl

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

ClassDemonstrations = Literal["examples", "names"]

TRAIN = "train"
WRONG_TASK = Path(__file__).with_name("wrong_task.jsonl")
SIMILAR_ENOUGH = 0.8  # of the highest score: from there a pair of an STS training split demonstrates similarity


@dataclass(frozen=True)
class Pair:
    """A possible demonstration; `label` is the class that its texts share, where there is one."""

    query: str
    passage: str
    label: str | None = None


@dataclass(frozen=True)
class Pool:
    """What demonstrations of one task are drawn from; `source` says in words where the pairs come from."""

    pairs: tuple[Pair, ...]
    source: str

    def draw(self, k: int, *, seed: int, fits: Callable[[Pair], bool]) -> list[Pair]:
        """`k` pairs in random order, the classes in turn where there are classes; none that does not fit.

        Raises UserError when fewer than `k` pairs fit.
        """
        order = np.random.default_rng([seed, zlib.crc32(self.source.encode())]).permutation(len(self.pairs))
        shuffled = (self.pairs[i] for i in order)
        by_label: dict[str | None, list[Pair]] = {}
        for pair in shuffled:
            by_label.setdefault(pair.label, []).append(pair)
        in_turn = (pair for turn in zip_longest(*by_label.values()) for pair in turn if pair is not None)
        chosen = list(islice(filter(fits, in_turn), k))
        if len(chosen) < k:
            raise UserError(
                f"{k} demonstrations were asked for, and {self.source} holds {len(self.pairs)} pairs of which only "
                f"{len(chosen)} fit into a prompt; ask for at most {len(chosen)}, or give more pairs in a file"
            )
        return chosen


def make_prompt(
    encoder: Encoder, *, instruction: str | None, pool: Pool | None, k: int, seed: int, control: Control | None
) -> Prompt:
    """The prompt of a task: its instruction with `k` demonstrations of the pool, or with one of the controls.

    Raises UserError when the pool has too few pairs that `encoder` reads whole, or the prompt is too long for it.
    """
    if k == 0:
        return encoder.prompt(task=instruction)
    assert pool is not None, k

    def fits(pair: Pair) -> bool:
        longest = encoder.config.max_length
        return all(len(ids) <= longest for ids in encoder.token_ids([pair.query, pair.passage], max_length=longest + 1))

    if control == "wrong-task":
        pool = file_pool(PairFile(WRONG_TASK))
    # One more than needed: a single pair has no other to take a wrong passage from.
    pairs = pool.draw(k + 1 if control == "shuffled" else k, seed=seed, fits=fits)
    if control == "shuffled":
        pairs = shuffled(pairs)[:k]
    demonstrations = [Demonstration(query=pair.query, passage=pair.passage) for pair in pairs]
    prompt = encoder.prompt(task=instruction, demonstrations=demonstrations)
    if control != "random":
        return prompt
    noise_SE = np.random.default_rng(seed).standard_normal(prompt.vectors_SE.shape).astype(np.float32)
    return replace(prompt, vectors_SE=noise_SE / np.linalg.norm(noise_SE, axis=1, keepdims=True))


def shuffled(pairs: Sequence[Pair]) -> list[Pair]:
    """Each query with the passage of the next pair that is of another class, or of the next pair at all."""
    wrong = []
    for i, pair in enumerate(pairs):
        others = [*pairs[i + 1 :], *pairs[:i]]
        other = next((other for other in others if other.label is None or other.label != pair.label), None)
        if other is None:
            raise UserError(
                f"all {len(pairs)} pairs are of the class '{pair.label}', so none shows a wrong passage; "
                "ask for more demonstrations"
            )
        wrong.append(replace(pair, passage=other.passage))
    return wrong


def file_pool(file: PairFile, *, tested: frozenset[str] = frozenset()) -> Pool:
    """Pairs of a file, without those that show a text of `tested`.

    A row has `query` and `passage`, or `query` and `positive` as training data do. Raises UserError for a file that
    cannot be read, a row without these texts, and a file of which nothing is left.
    """
    pairs = []
    for number, row in read_jsonl(file.path):
        if file.task is not None and row.get("task") != file.task:
            continue
        passage = row.get("passage", row.get("positive"))
        if not isinstance(row.get("query"), str) or not isinstance(passage, str):
            raise UserError(f"{file.path}, line {number}: a demonstration has the texts query and passage")
        pairs.append(Pair(row["query"], passage))
    return _pool(pairs, f"the file {file.path.name}", tested)


def class_pairs(texts: Sequence[str], labels: Sequence[str], *, classes: ClassDemonstrations) -> Iterator[Pair]:
    """Pairs that demonstrate classes: two texts of one ("examples", no text twice), or a text and its class's name."""
    by_label: dict[str, list[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        by_label.setdefault(label, []).append(text)
    for label, members in by_label.items():
        if classes == "names":
            yield from (Pair(text, label, label) for text in members)
        else:
            yield from (Pair(a, b, label) for a, b in zip(members[::2], members[1::2], strict=False))


def task_pool(task: "AbsTask", kind: Kind, *, classes: ClassDemonstrations) -> Pool:
    """Pairs of the training split of a loaded task, without those that show a text of its test.

    Retrieval and reranking: a query with a relevant passage. STS: sentences with four fifths of the highest score.
    Pair classification: positive pairs. Classification and clustering: two texts of a class ("examples") or a text
    and the name of its class ("names"). Raises UserError when there is no training split, or nothing in it.
    """
    name = task.metadata.name
    rows = [split for _, splits in _subsets(task) if (split := splits.get(TRAIN)) is not None]
    if not rows and kind in ("retrieval", "reranking"):
        rows = _hub_train_split(task)
    if not rows:
        raise UserError(
            f"{name} has no training split to take demonstrations from; give pairs with --pairs FILE, as lines "
            '{"query": ..., "passage": ...}, or take 0 demonstrations'
        )
    pairs = [pair for split in rows for pair in _pairs(task, kind, split, classes)]
    return _pool(pairs, f"the training split of {name}", tested_texts(task, kind))


def tested_texts(task: "AbsTask", kind: Kind) -> frozenset[str]:
    """Every text of the task's evaluation splits that is embedded as a query, in the form `comparable` gives it."""
    texts: set[str] = set()
    for _, splits in _subsets(task):
        for split in task.eval_splits:
            rows = splits[split]
            for column in _query_columns(task, kind):
                texts.update(map(comparable, rows["queries"]["text"] if "queries" in rows else rows[column]))
    return frozenset(texts)


def comparable(text: str) -> str:
    """A text for comparing: lower case, white space in one form."""
    return " ".join(text.lower().split())


def _pool(pairs: Iterable[Pair], source: str, tested: frozenset[str]) -> Pool:
    kept = tuple(
        pair
        for pair in dict.fromkeys(pairs)
        if pair.query.strip()
        and pair.passage.strip()
        and not {comparable(pair.query), comparable(pair.passage)} & tested
    )
    if not kept:
        raise UserError(
            f"{source} holds no pair whose texts are not also in the test, so there is nothing to demonstrate"
        )
    return Pool(kept, source)


def _subsets(task: "AbsTask") -> list[tuple[str, dict[str, Any]]]:
    """(subset, {split: rows}) of a loaded task; mteb keeps single-subset data sometimes under a name, sometimes not."""
    dataset: Any = task.dataset
    if set(task.eval_splits) <= set(dataset):
        return [("default", dataset)]
    return [(subset, dataset[subset]) for subset in task.hf_subsets if subset in dataset]


def _query_columns(task: "AbsTask", kind: Kind) -> tuple[str, ...]:
    match kind:
        case "retrieval" | "reranking":
            return ("queries",)
        case "sts":
            return tuple(task.column_names)  # type: ignore[attr-defined]
        case "pair_classification":
            return (task.input1_column_name, task.input2_column_name)  # type: ignore[attr-defined]
        case "classification" | "clustering":
            return (task.input_column_name,)  # type: ignore[attr-defined]


def _pairs(task: "AbsTask", kind: Kind, rows: Any, classes: ClassDemonstrations) -> Iterator[Pair]:
    match kind:
        case "retrieval" | "reranking":
            yield from _relevant_pairs(rows)
        case "sts":
            first, second = _query_columns(task, kind)
            enough = SIMILAR_ENOUGH * task.max_score  # type: ignore[attr-defined]
            for a, b, score in zip(rows[first], rows[second], rows["score"], strict=True):
                if score >= enough:
                    yield Pair(a, b)
        case "pair_classification":
            first, second = _query_columns(task, kind)
            labels = rows[task.label_column_name]  # type: ignore[attr-defined]
            for a, b, label in zip(rows[first], rows[second], labels, strict=True):
                if label == 1:
                    yield Pair(a, b)
        case "classification" | "clustering":
            named = "label_text" if "label_text" in rows.column_names else task.label_column_name  # type: ignore[attr-defined]
            labels = [json.dumps(label) if isinstance(label, list) else str(label) for label in rows[named]]
            yield from class_pairs(list(rows[task.input_column_name]), labels, classes=classes)  # type: ignore[attr-defined]


def _relevant_pairs(rows: Any) -> Iterator[Pair]:
    queries = dict(zip(rows["queries"]["id"], rows["queries"]["text"], strict=True))
    wanted = {document for judged in rows["relevant_docs"].values() for document, grade in judged.items() if grade > 0}
    documents = {row["id"]: row for row in rows["corpus"] if row["id"] in wanted}
    for query, judged in rows["relevant_docs"].items():
        for document, grade in judged.items():
            if grade > 0 and query in queries and document in documents:
                row = documents[document]
                yield Pair(queries[query], "\n".join(part for part in (row.get("title") or "", row["text"]) if part))


def _hub_train_split(task: "AbsTask") -> list[Any]:
    """The training split of a retrieval task on the hub, which mteb does not load for an evaluation; [] if none."""
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    dataset = task.metadata.dataset
    loaded = []
    for subset in task.hf_subsets:
        loader = RetrievalDatasetLoader(
            hf_repo=dataset["path"], revision=dataset["revision"], split=TRAIN, config=subset
        )
        try:
            loaded.append(loader.load())
        except (ValueError, KeyError, FileNotFoundError):  # a repository without such a split
            continue
    return loaded
