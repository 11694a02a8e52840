"""Demonstrations of an evaluation task: taken from its training split or a file, never from its test, and controls.

Four conditions beside "none": the true pairs, and three controls that share their number and their place in the prompt.
`shuffled` pairs each query with the passage of another pair, `wrong-task` shows true pairs of a task that nobody
measures here (countries and their capitals), and `random` puts random unit vectors in the place of the true ones, which
only soft demonstrations have.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.encoder import Demonstration, Encoder, Prompt
from epic_search.encoder.prompt import DemonstrationKind
from epic_search.errors import UserError
from epic_search.evaluation.kinds import CLASS_KINDS, SEARCH_KINDS, ClassDemonstrations, Control, Kind
from epic_search.evaluation.splits import query_texts, subsets, unwrapped
from epic_search.evaluation.tasks import PairFile
from epic_search.training.pairs import read_jsonl

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

TRAIN = "train"
WRONG_TASK = Path(__file__).with_name("wrong_task.jsonl")
SIMILAR_ENOUGH = 0.8  # of the range of scores: from there a pair of an STS training split demonstrates similarity
TEXTS = {"query", "text", "passage", "positive"}  # a row of a file that has none of these names a class alone
SPARE = 64  # further pairs that are looked through for a wrong passage


@dataclass(frozen=True)
class Pair:
    """A possible demonstration; `label` is its query's class, where there are classes, which the passage may name."""

    query: str
    passage: str
    label: str | None = None
    names_class: bool = False


@dataclass(frozen=True)
class Pool:
    """What demonstrations of one task are drawn from; `source` says in words where the pairs come from.

    `classes`: names of classes that are told beside the pairs that are drawn. `left_out`: how many pairs there were
    besides, which show a text of the test. `remedy`: what to do where pairs are lacking.
    """

    pairs: tuple[Pair, ...]
    source: str
    classes: tuple[str, ...] = ()
    left_out: int = 0
    remedy: str = "give pairs in a file"

    @property
    def names_classes(self) -> bool:
        """Whether passages name the classes of their queries."""
        return any(pair.names_class for pair in self.pairs)

    def draw(self, k: int, *, seed: int, fits: Callable[[Pair], bool]) -> list[Pair]:
        """`k` pairs in random order, the classes in turn where there are classes; none that does not fit.

        Raises UserError when fewer than `k` pairs fit.
        """
        chosen = list(islice(filter(fits, self._in_random_order(seed)), min(k, len(self.pairs))))
        if len(chosen) < k:
            tested = f" (left out, with a text of the test: {self.left_out})" if self.left_out else ""
            fewer = f"ask for at most {len(chosen)}, or " if chosen else ""
            raise UserError(
                f"{k} demonstrations were asked for, and {self.source} holds {len(self.pairs)} pairs that can be "
                f"shown{tested}, {len(chosen)} of them short enough to be read whole; {fewer}{self.remedy}"
            )
        return chosen

    def draw_shuffled(self, k: int, *, seed: int, fits: Callable[[Pair], bool]) -> list[Pair]:
        """The queries of `draw`, each with a passage that is right for none of its pairs and not of its class.

        Raises UserError as `draw` does, and where every other passage is right.
        """
        true = self.draw(k, seed=seed, fits=fits)
        right: dict[str, set[str]] = {}
        for pair in self.pairs:
            right.setdefault(pair.query, set()).add(pair.passage)
        # The passages of the other pairs come first, so that the texts shown are the same where that is possible.
        spare = list(islice(filter(fits, self._in_random_order(seed)), k, 2 * k + SPARE))
        wrong = []
        for i, pair in enumerate(true):
            for other in (*true[i + 1 :], *true[:i], *spare):
                if other.passage not in right[pair.query] and (pair.label is None or other.label != pair.label):
                    wrong.append(replace(pair, passage=other.passage))
                    break
            else:
                raise UserError(
                    f"{self.source} holds no passage that is wrong for '{pair.query[:60]}', which shuffled "
                    f"demonstrations need; {self.remedy}"
                )
        return wrong

    def _in_random_order(self, seed: int) -> Iterator[Pair]:
        order = np.random.default_rng([seed, zlib.crc32(self.source.encode())]).permutation(len(self.pairs))
        by_label: dict[str | None, list[Pair]] = {}
        for i in order:
            by_label.setdefault(self.pairs[i].label, []).append(self.pairs[i])
        return (pair for turn in zip_longest(*by_label.values()) for pair in turn if pair is not None)


def make_prompt(
    encoder: Encoder,
    *,
    instruction: str | None,
    pool: Pool | None,
    k: int,
    seed: int,
    control: Control | None,
    kind: DemonstrationKind | None = None,
) -> Prompt:
    """The prompt of a task: its instruction with `k` demonstrations of the pool, or with one of the controls.

    `pool` is needed for true and for shuffled demonstrations; other controls name classes where it does. `kind`: as in
    Encoder.prompt. Raises UserError when the pool has too few pairs that `encoder` reads whole, when the prompt is too
    long, and for random text demonstrations.
    """
    if k == 0:
        return encoder.prompt(task=instruction)
    if control == "random" and (kind or encoder.config.demonstrations) == "text":
        raise UserError(
            "random demonstrations are vectors of nothing in the place of true vectors, and text demonstrations have "
            "no vectors; leave this control out, or take shuffled and wrong-task"
        )

    def fits(pair: Pair) -> bool:
        longest = encoder.config.max_length
        return all(len(ids) <= longest for ids in encoder.token_ids([pair.query, pair.passage], max_length=longest + 1))

    told = len(pool.classes) if pool else 0
    if control in ("wrong-task", "random"):
        pool = wrong_task_pool(like=pool)
    assert pool is not None, (k, control)
    draw = pool.draw_shuffled if control == "shuffled" else pool.draw
    pairs = draw(k, seed=seed, fits=fits)
    demonstrations = [Demonstration(pair.query, pair.passage, pair.names_class) for pair in pairs]
    named = {pair.passage for pair in pairs}
    others = [name for name in pool.classes if name not in named][: max(0, told - len(named))]
    demonstrations += [Demonstration("", name, names_class=True) for name in others]
    prompt = encoder.prompt(task=instruction, demonstrations=demonstrations, kind=kind)
    if control != "random":
        return prompt
    noise_SE = np.random.default_rng(seed).standard_normal(prompt.vectors_SE.shape).astype(np.float32)
    return replace(prompt, vectors_SE=noise_SE / np.linalg.norm(noise_SE, axis=1, keepdims=True))


def wrong_task_pool(*, like: Pool | None) -> Pool:
    """Pairs of a task that nobody measures here; its classes are named, and told, where those of `like` are."""
    pool = replace(file_pool(PairFile(WRONG_TASK)), remedy="leave this control out")
    if like is None or not like.names_classes:
        return pool
    named = tuple(replace(pair, label=pair.passage, names_class=True) for pair in pool.pairs)
    return replace(pool, pairs=named, classes=_names(named) if like.classes else ())


def file_pool(file: PairFile, *, tested: frozenset[str] = frozenset()) -> Pool:
    """Pairs of a file, without those that show a text of `tested`.

    A row has `query` and `passage`, or `query` and `positive` as training data do, or `query` (or `text`, as the rows
    of a classification) and `label`, its class, or `label` without a text for a class without an example; where there
    is such a row, all classes of the file are told. Raises UserError for a file that cannot be read, a row without
    these texts, and a file of which nothing is left.
    """
    pairs, classes = [], []
    for number, row in read_jsonl(file.path):
        if file.task is not None and row.get("task") != file.task:
            continue
        match row:
            case {"query": str(query), "passage": str(passage)} | {"query": str(query), "positive": str(passage)}:
                pairs.append(Pair(query, passage))
            case {"query": str(text), "label": str(label)} | {"text": str(text), "label": str(label)}:
                pairs.append(Pair(text, class_name(label), label, names_class=True))
            case {"label": str(label)} if class_name(label).strip() and not TEXTS & row.keys():
                classes.append(class_name(label))
            case _:
                raise UserError(
                    f"{file.path}, line {number}: a demonstration has the texts query and passage, or query and "
                    "label, or text and label; a class without an example has a label alone"
                )
    pool = _pool(pairs, f"the file {file.path.name}", tested)
    told = tuple(dict.fromkeys([*_names(pool.pairs), *classes])) if classes else ()
    return replace(pool, classes=told, remedy="add other pairs to it")


def class_name(label: str) -> str:
    """What demonstrations call the class of a label."""
    return label.replace("_", " ")


def class_pairs(texts: Sequence[str], labels: Sequence[str], *, classes: ClassDemonstrations) -> Iterator[Pair]:
    """Demonstrations of classes: two texts of one ("examples", no text twice), else a text with its class's name."""
    by_label: dict[str, list[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        by_label.setdefault(label, []).append(text)
    for label, members in by_label.items():
        if classes != "examples":
            yield from (Pair(text, class_name(label), label, names_class=True) for text in members)
        else:
            yield from (Pair(a, b, label) for a, b in zip(members[::2], members[1::2], strict=False))


def task_pool(task: "AbsTask", kind: Kind, *, classes: ClassDemonstrations) -> Pool:
    """Pairs of the training split of a loaded task, without those that show a text of its test.

    Retrieval and reranking: a query with a relevant passage. STS: sentences with four fifths of the highest score.
    Pair classification: positive pairs. Classification and clustering: two texts of a class ("examples") or a text
    and the name of its class ("names", and "all-names", which tells those of all others, too). Raises UserError when
    there is no training split, or nothing in it.
    """
    name = task.metadata.name
    train = getattr(task, "train_split", TRAIN)
    rows = [unwrapped(splits[train]) for _, splits in subsets(task) if train in splits]
    if train in task.eval_splits:  # a cross-validated task is tested on its training split
        rows = []
    if not rows and kind in SEARCH_KINDS and getattr(task, "from_hub", True):
        rows = _hub_train_split(task)
    if not rows:
        named = ' or {"text": ..., "label": ...}' if kind in CLASS_KINDS else ""
        raise UserError(
            f"{name} has no training split to take demonstrations from; give pairs with --pairs FILE, as lines "
            f'{{"query": ..., "passage": ...}}{named}, or take 0 demonstrations'
        )
    pairs = [pair for split in rows for pair in _pairs(task, kind, split, classes)]
    pool = _pool(pairs, f"the training split of {name}", tested_texts(task, kind))
    return replace(pool, classes=_names(pairs)) if classes == "all-names" else pool


def tested_texts(task: "AbsTask", kind: Kind) -> frozenset[str]:
    """What no demonstration may show, in the form `comparable` gives it.

    The texts of the evaluation splits that are embedded as queries and, for rankings, the documents relevant to them.
    """
    texts: set[str] = set()
    for _, splits in subsets(task):
        for split in task.eval_splits:
            rows = unwrapped(splits[split])
            if kind in SEARCH_KINDS:
                texts.update(map(comparable, query_texts(rows["queries"])))
                texts.update(comparable(pair.passage) for pair in _relevant_pairs(rows))
            else:
                for column in _text_columns(task, kind):
                    texts.update(map(comparable, rows[column]))
    return frozenset(texts)


def comparable(text: str) -> str:
    """A text for comparing: lower case, white space in one form."""
    return " ".join(text.lower().split())


def _pool(pairs: Iterable[Pair], source: str, tested: frozenset[str]) -> Pool:
    given = [pair for pair in dict.fromkeys(pairs) if pair.query.strip() and pair.passage.strip()]
    if not given:
        raise UserError(f"{source} holds no pair of two texts, so there is nothing to demonstrate")
    kept = tuple(pair for pair in given if not {comparable(pair.query), comparable(pair.passage)} & tested)
    if not kept:
        raise UserError(f"each of the {len(given)} pairs of {source} shows a text of the test; give other pairs")
    return Pool(kept, source, left_out=len(given) - len(kept))


def _names(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """The names of classes among the passages, each once."""
    return tuple(dict.fromkeys(pair.passage for pair in pairs if pair.names_class and pair.passage.strip()))


def _text_columns(task: Any, kind: Kind) -> tuple[str, ...]:
    match kind:
        case "sts":
            return tuple(task.column_names)
        case "pair_classification":
            return (task.input1_column_name, task.input2_column_name)
        case _:
            return (task.input_column_name,)


def _pairs(task: Any, kind: Kind, rows: Any, classes: ClassDemonstrations) -> Iterator[Pair]:
    match kind:
        case "retrieval" | "reranking":
            yield from _relevant_pairs(rows)
        case "sts":
            first, second = _text_columns(task, kind)
            enough = task.min_score + SIMILAR_ENOUGH * (task.max_score - task.min_score)
            for a, b, score in zip(rows[first], rows[second], rows["score"], strict=True):
                if score >= enough:
                    yield Pair(a, b)
        case "pair_classification":
            first, second = _text_columns(task, kind)
            for a, b, label in zip(rows[first], rows[second], rows[task.label_column_name], strict=True):
                if label == 1:
                    yield Pair(a, b)
        case "classification" | "clustering":
            named = "label_text" if "label_text" in rows.column_names else task.label_column_name
            labels = [json.dumps(label) if isinstance(label, list) else str(label) for label in rows[named]]
            yield from class_pairs(list(rows[task.input_column_name]), labels, classes=classes)


def _relevant_pairs(rows: Any) -> Iterator[Pair]:
    queries = dict(zip(rows["queries"]["id"], query_texts(rows["queries"]), strict=True))
    wanted = {document for judged in rows["relevant_docs"].values() for document, grade in judged.items() if grade > 0}
    documents = {row["id"]: row for row in rows["corpus"] if row["id"] in wanted}
    for query, judged in rows["relevant_docs"].items():
        for document, grade in judged.items():
            if grade > 0 and query in queries and document in documents:
                row = documents[document]
                yield Pair(queries[query], "\n".join(part for part in (row.get("title") or "", row["text"]) if part))


def _hub_train_split(task: "AbsTask") -> list[Any]:
    """The training split of a retrieval task on the hub, which mteb does not load for an evaluation; [] if none."""
    from datasets import get_dataset_split_names
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    dataset = task.metadata.dataset
    loaded = []
    for subset in task.hf_subsets:
        loader = RetrievalDatasetLoader(
            hf_repo=dataset["path"], revision=dataset["revision"], split=TRAIN, config=subset
        )
        qrels = "default" if loader.config is None else f"{loader.config}-qrels"
        names = get_dataset_split_names(dataset["path"], revision=dataset["revision"], config_name=qrels)
        # Asked for a split that is not there, mteb's loader gives the only one there is: the test.
        if TRAIN in names:
            loaded.append(loader.load())
    return loaded
