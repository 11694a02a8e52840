"""What is evaluated: `EvalTask`, made from a local folder or from a task or benchmark of mteb.

A local folder becomes a task object of mteb's own classes, so that its scores come from mteb's code.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.errors import UserError
from epic_search.evaluation.folder import TEST, TRAIN, Columns, Folder, read_folder
from epic_search.evaluation.instructions import instruction_for
from epic_search.evaluation.kinds import MTEB_TYPES, SEARCH_KINDS, Kind

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

SEED = 42  # of the draws of `limit` and `set_aside`
MAIN_SCORES: dict[Kind, str] = {
    "retrieval": "ndcg_at_10",
    "reranking": "map_at_1000",
    "sts": "cosine_spearman",
    "pair_classification": "max_ap",
    "classification": "accuracy",
    "clustering": "v_measure",
}
FROM_HUB = "mteb "  # how the origin of data begins that mteb fetches
CLUSTERED = 2048  # texts that MTEB's newer clustering tasks embed at most
# The columns in which a test with one value only has no score.
VARYING: dict[Kind, str] = {
    "sts": "score",
    "pair_classification": "label",
    "classification": "label",
    "clustering": "label",
}


@dataclass(frozen=True)
class PairFile:
    """A JSONL file (.gz too) of demonstrations; with `task`, only its rows of that task: training files mix several."""

    path: Path
    task: str | None = None


@dataclass(frozen=True)
class EvalTask:
    """A task of a run. `name` is unique within it: a folder's name or mteb's.

    `make` gives a new mteb task at each call, since an evaluation uses up a task's random state. `instruction` is the
    sentence for the prompt, None for none. `pairs` are demonstrations for a task without a training split.
    `origin` says where the data are: a folder, or mteb's name of them.
    """

    name: str
    kind: Kind
    make: "Callable[[], AbsTask]"
    instruction: str | None
    pairs: PairFile | None = None
    origin: str = ""


def folder_task(
    path: Path,
    *,
    name: str | None = None,
    kind: Kind | None = None,
    instruction: str | None = None,
    pairs: PairFile | None = None,
    limit: int | None = None,
    set_aside: int | None = None,
    own_document: str | None = None,
    labels: Mapping[str, str] | None = None,
    split: str = TEST,
    keep: int | None = None,
) -> EvalTask:
    """A local folder as a task; reads and checks all of it.

    `limit`: so many test rows (queries in retrieval and reranking, of which the corpus stays whole), always the same.
    `set_aside`: so many test rows are taken out of the test and become its training split.
    `split`: the rows that are tested. Of "train" those that `limit` leaves stay the training split.
    `keep`: so many rows are kept of a training split, and of a corpus so many documents: those that the test queries
    are judged on, and others.
    `own_document`: the query "t17" was made from the document "17" where this is "t"; a query's own document is no hit.
    `labels`: the names of the classes, where the data have numbers or codes; demonstrations may show them.
    `instruction`: "" for none; by default what `instructions.toml` says.
    Raises UserError for data that cannot be read and for options that do not fit them.
    """
    folder = read_folder(path, kind=kind, split=split)
    if split == TRAIN:
        assert limit is not None and set_aside is None, (limit, set_aside)
        total = len(next(iter(folder.splits[TEST].values())))
        if limit >= total:
            raise UserError(
                f"{path} has {total} training rows, and limit = {limit} leaves none to learn from; lower it"
            )
        set_aside = total - limit
    splits = _draw(folder, limit=limit, set_aside=set_aside)
    if labels is not None:
        splits = {split: _named(folder, columns, labels) for split, columns in splits.items()}
    if TRAIN in splits and keep is not None:
        size = len(next(iter(splits[TRAIN].values())))
        splits[TRAIN] = _rows(splits[TRAIN], np.random.default_rng(SEED).permutation(size)[:keep])
    if own_document is not None:
        splits = {split: _own_ids(folder, columns, own_document) for split, columns in splits.items()}
    if folder.kind == "classification" and TRAIN not in splits:
        raise UserError(f"{path} lacks train.jsonl, which a classifier learns from; add it or use set_aside in a suite")
    _check_test(folder, splits[TEST])
    name = name or path.resolve().name
    if instruction is None:
        instruction = instruction_for(name, folder.kind)
    options: dict[str, Any] = {
        "kind": folder.kind,
        "limit": limit,
        "set_aside": set_aside,
        "own_document": own_document,
    }
    options |= {name: value for name, value in (("keep", keep), ("labels", labels)) if value is not None}
    corpus = _test_corpus(folder, splits[TEST], keep)
    revision = hashlib.sha256(f"{folder.digest} {json.dumps(options, sort_keys=True)}".encode()).hexdigest()[:16]
    attributes = _attributes(folder, splits)
    if own_document is not None:
        attributes["ignore_identical_ids"] = True

    def make() -> "AbsTask":
        return _mteb_class(folder, splits, corpus, name, revision, instruction, attributes)()

    return EvalTask(name, folder.kind, make, instruction or None, pairs, origin=str(path.resolve()))


def mteb_tasks(name: str, *, instruction: str | None = None, pairs: PairFile | None = None) -> list[EvalTask]:
    """A task of mteb by its name: the English part of a multilingual one, the parts of an aggregate (CQADupstack).

    Raises KeyError for a name that mteb does not know, and UserError for a task of another kind than ours.
    """
    import mteb

    try:
        task = mteb.get_task(name, languages=["eng"], exclusive_language_filter=True)
    except ValueError:  # no English part
        task = mteb.get_task(name)
    return [_mteb_task(part, instruction, pairs) for part in _parts(task)]


def benchmark_tasks(name: str, *, say: Callable[[str], None] = lambda _: None) -> list[EvalTask]:
    """The tasks of a benchmark of mteb, with the languages and splits that it uses; `say` hears what is left out.

    Raises KeyError for a name that mteb does not know, and UserError for a benchmark without a task of our six kinds.
    """
    import mteb

    parts = [part for task in mteb.get_benchmark(name).tasks for part in _parts(task)]
    fitting = [part for part in parts if _kind(part) is not None]
    if not fitting:
        raise UserError(f"the benchmark {name} has no text task of {_allowed()}, which can be evaluated")
    for task in mteb.get_benchmark(name).tasks:
        if task.is_aggregate:
            say(f"{name}: the parts of {task.metadata.name} count as tasks of their own, where MTEB counts one task")
    for part in parts:
        if _kind(part) is None:
            say(f"{name}: left out {part.metadata.name}, a task of type {part.metadata.type}")
    return [_mteb_task(part, None, None) for part in fitting]


def _parts(task: "AbsTask") -> "Iterator[AbsTask]":
    if task.is_aggregate:
        for part in task.metadata.tasks:  # type: ignore[attr-defined]
            yield from _parts(part)
    else:
        yield task


def _kind(task: "AbsTask") -> Kind | None:
    kinds = [kind for kind, mteb_type in MTEB_TYPES.items() if mteb_type == task.metadata.type]
    return kinds[0] if kinds and task.modalities == ["text"] else None


def _allowed() -> str:
    return f"the types {', '.join(MTEB_TYPES.values())}"


def _mteb_task(task: "AbsTask", instruction: str | None, pairs: PairFile | None) -> EvalTask:
    name, kind = task.metadata.name, _kind(task)
    if kind is None:
        raise UserError(
            f"{name} is a task of type {task.metadata.type} ({', '.join(task.modalities)}); "
            f"text tasks of {_allowed()} can be evaluated"
        )
    if instruction is None:
        instruction = instruction_for(name, kind, prompt=task.metadata.prompt)  # type: ignore[arg-type]
    task_class, subsets, eval_splits = type(task), list(task.hf_subsets), list(task.eval_splits)

    def make() -> "AbsTask":
        fresh = task_class()
        fresh.hf_subsets = list(subsets)
        return fresh.filter_eval_splits(eval_splits)

    return EvalTask(name, kind, make, instruction or None, pairs, origin=f"{FROM_HUB}{name}")


def _draw(folder: Folder, *, limit: int | None, set_aside: int | None) -> dict[str, Columns]:
    """The splits after `set_aside` and then `limit`, rows in their old order."""
    test = folder.splits[TEST]
    total = len(next(iter(test.values())))
    order = np.random.default_rng(SEED).permutation(total)
    splits = dict(folder.splits)
    if set_aside is not None:
        if TRAIN in splits:
            raise UserError(f"{folder.path} has a training split of its own; leave out set_aside = {set_aside}")
        if set_aside >= total:
            raise UserError(f"set_aside = {set_aside} leaves nothing of the {total} test rows of {folder.path}")
        splits[TRAIN] = _rows(test, order[:set_aside])
    splits[TEST] = _rows(test, order[set_aside or 0 :][:limit])
    return splits


def _rows(columns: Columns, chosen: np.ndarray) -> Columns:
    return {name: [values[i] for i in np.sort(chosen)] for name, values in columns.items()}


def _test_corpus(folder: Folder, test: Columns, keep: int | None) -> Columns | None:
    """The corpus that the test searches, cut to `keep` as `folder_task` says; None for kinds without one."""
    if folder.corpus is None or keep is None:
        return folder.corpus
    ids = folder.corpus["id"]
    judged = {document for relevant in test["relevant"] for document in relevant}
    kept = [i for i, document in enumerate(ids) if document in judged]
    if folder.kind == "retrieval":  # in reranking other documents are nobody's candidates
        others = [i for i in np.random.default_rng(SEED).permutation(len(ids)) if ids[i] not in judged]
        kept += others[: max(0, keep - len(kept))]
    return _rows(folder.corpus, np.array(kept))


def _own_ids(folder: Folder, columns: Columns, prefix: str) -> Columns:
    if folder.kind != "retrieval":
        raise UserError(f"own_document = '{prefix}' is for retrieval, and {folder.path} is {folder.kind}")
    for name in columns["id"]:
        if not name.startswith(prefix):
            raise UserError(
                f"{folder.path}: the id of the query '{name}' does not begin with own_document = '{prefix}'"
            )
    return {**columns, "id": [name.removeprefix(prefix) for name in columns["id"]]}


def _named(folder: Folder, columns: Columns, names: Mapping[str, str]) -> Columns:
    if "label_text" not in columns:
        raise UserError(f"labels are names of classes, and {folder.path} is {folder.kind}")
    if nameless := sorted(set(columns["label_text"]) - names.keys()):
        raise UserError(f"labels have no name for {', '.join(nameless[:5])}, which {folder.path} has; name all of them")
    return {**columns, "label_text": [names[label] for label in columns["label_text"]]}


def _check_test(folder: Folder, test: Columns) -> None:
    if folder.kind in VARYING:
        column = VARYING[folder.kind]
        values = test["label_text" if "label_text" in test else column]
        if len(set(values)) < 2:
            raise UserError(
                f"{folder.path}: the {column} of all {len(values)} test rows is '{values[0]}'; "
                "without a second one there is nothing to tell apart"
            )


def _attributes(folder: Folder, splits: dict[str, Columns]) -> dict[str, Any]:
    """What mteb's task class of this kind has to know about the data."""
    match folder.kind:
        case "sts":
            scores = [score for columns in splits.values() for score in columns["score"]]
            return {"min_score": math.floor(min(scores)), "max_score": math.ceil(max(scores))}
        case "clustering":
            return {
                "input_column_name": "text",
                "label_column_name": "label",
                "max_fraction_of_documents_to_embed": None,
                "max_document_to_embed": CLUSTERED,
            }
        case _:
            return {}


def _mteb_class(
    folder: Folder,
    splits: dict[str, Columns],
    corpus: Columns | None,
    name: str,
    revision: str,
    instruction: str | None,
    attributes: dict[str, Any],
) -> "type[AbsTask]":
    """A class and not only an object, because mteb looks metadata up in classes."""
    from mteb import abstasks
    from mteb.abstasks.task_metadata import TaskMetadata

    bases: dict[Kind, type[AbsTask]] = {
        "retrieval": abstasks.AbsTaskRetrieval,
        "reranking": abstasks.AbsTaskRetrieval,
        "sts": abstasks.AbsTaskSTS,
        "pair_classification": abstasks.AbsTaskPairClassification,
        "classification": abstasks.AbsTaskClassification,
        "clustering": abstasks.AbsTaskClustering,
    }
    metadata = TaskMetadata(
        name=name,
        description=f"The local folder {folder.path.resolve().name}.",
        type=MTEB_TYPES[folder.kind],
        dataset={"path": folder.path.resolve().name, "revision": revision},
        eval_splits=[TEST],
        eval_langs=["eng-Latn"],
        main_score=MAIN_SCORES[folder.kind],
        prompt=({"query": instruction} if folder.kind in SEARCH_KINDS else instruction) if instruction else None,
    )

    def load_data(self: "AbsTask", *args: Any, **options: Any) -> None:
        if not self.data_loaded:
            self.dataset = _dataset(folder, splits, corpus)
            self.data_loaded = True

    own = {"metadata": metadata, "load_data": load_data, "from_hub": False}
    return type("FolderTask", (bases[folder.kind],), own | attributes)


def _dataset(folder: Folder, splits: dict[str, Columns], corpus: Columns | None) -> Any:
    """The splits in the form that mteb's task class of this kind has after loading."""
    from datasets import Dataset, DatasetDict

    if folder.corpus is None or corpus is None:
        if folder.kind == "pair_classification":  # mteb calls the column "labels" here
            splits = {
                split: {("labels" if name == "label" else name): values for name, values in columns.items()}
                for split, columns in splits.items()
            }
        return DatasetDict({split: Dataset.from_dict(columns) for split, columns in splits.items()})
    whole = Dataset.from_dict(folder.corpus)
    tested = whole if corpus is folder.corpus else Dataset.from_dict(corpus)
    return {
        "default": {
            split: {
                "corpus": tested if split == TEST else whole,
                "queries": Dataset.from_dict({"id": columns["id"], "text": columns["text"]}),
                "relevant_docs": dict(zip(columns["id"], columns["relevant"], strict=True)),
                "top_ranked": dict(zip(columns["id"], columns["candidates"], strict=True))
                if "candidates" in columns
                else None,
            }
            for split, columns in splits.items()
        }
    }
