"""The rows of an mteb task in one form: mteb's older tasks keep theirs in others, and mteb copes with that."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

Splits = Mapping[str, Any]


def load(task: "AbsTask") -> None:
    """Load a task's data, as far as mteb would itself before it evaluates."""
    task.load_data()
    convert = getattr(task, "convert_v1_dataset_format_to_v2", None)
    if convert is not None:
        convert(num_proc=None)


def subsets(task: "AbsTask") -> list[tuple[str, Splits]]:
    """(subset, {split: rows}) of a loaded task; a task of a single subset may keep its splits without that name."""
    dataset: Any = task.dataset
    if set(task.eval_splits) <= set(dataset):
        return [("default", dataset)]
    return [(subset, dataset[subset]) for subset in task.hf_subsets if subset in dataset]


def query_texts(queries: Any) -> list[str]:
    """The queries of a ranking; the turns of a dialogue, which some tasks ask with, in one text each."""
    return [text if isinstance(text, str) else _dialogue(text) for text in queries["text"]]


def _dialogue(turns: Sequence[Any]) -> str:
    return "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in turns)


def unwrapped(rows: Any) -> Any:
    """The rows themselves where one row holds them all as lists, which is how pair classification once was stored."""
    if len(rows) == 1 and all(isinstance(value, list) for value in rows[0].values()):
        return rows[0]
    return rows
