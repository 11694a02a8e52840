"""Reads what evaluations wrote: mteb's result files with our block in each, and the scores of single items beside."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# pydantic needs this TypedDict before Python 3.12.
from typing_extensions import TypedDict

from epic_search.encoder.prompt import DemonstrationKind
from epic_search.errors import UserError
from epic_search.evaluation.kinds import CONTROLS, KINDS, ClassDemonstrations, Control, Kind

BLOCK = "epic_search"
RUN_FILE = "run.json"

Form = Literal["mean", "spearman", "average_precision", "runs"]
Model = TypeVar("Model", bound=BaseModel)


class Prompt(TypedDict):
    """What stood before each query. `classes` says what a demonstration of a class showed, `source` whence they are.

    `kind` says what demonstrations were in the input; None where there were none.
    """

    instruction: str | None
    demonstrations: list[tuple[str, str]]
    control: Control | None
    seed: int | None
    classes: ClassDemonstrations | None
    source: NotRequired[str | None]
    kind: NotRequired[DemonstrationKind | None]


class Cost(TypedDict):
    """What an evaluation cost. `query_tokens` counts the prompt too; `query_ms` is the median of one query alone."""

    queries: int
    query_tokens: float | None
    query_ms: float | None
    texts: int
    tokens: int
    encode_seconds: float
    wall_seconds: float


class Settings(TypedDict):
    """How the model ran."""

    search: Literal["index", "exact", "bm25"]
    long_documents: NotRequired[str]
    max_length: int | None
    dtype: str
    device: str
    machine: str
    versions: NotRequired[dict[str, str]]


@dataclass(frozen=True, eq=False)
class Items:
    """What a score was made of: one value an item (query, test row, pair or clustering).

    `form` says how values (n,) become the score: their mean ("mean", "runs"), or Spearman's correlation or the average
    precision against `gold` (n,).
    """

    metric: str
    form: Form
    ids: tuple[str, ...]
    values: NDArray[np.float64]
    gold: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class Result:
    """One task, evaluated once. `score` is a fraction; `model` is the short label that tables show.

    `variant` says what demonstrations are drawn from, show, or become, where that is not the usual.
    """

    model: str
    name: str
    revision: str
    task: str
    dataset_revision: str
    kind: Kind
    demos: int
    seed: int
    control: Control | None
    variant: str | None
    score: float
    prompt: Prompt
    cost: Cost
    settings: Settings
    items: Items | None
    path: Path

    @property
    def label(self) -> str:
        """What names the entry of this result in a table: "epic-mini", "epic-mini@4", "epic-mini@4-shuffled"."""
        return entry_label(self.model, demos=self.demos, control=self.control, variant=self.variant)


class Failure(BaseModel):
    """A task that ended in an error; `mistake`: one that a user can put right."""

    model: str
    task: str
    condition: str = ""
    error: str
    mistake: bool = False


class Run(BaseModel):
    """What `run.json` says: all models, tasks and commands of the folder, and the failures of the latest command.

    `origins`: where each task's data came from. `notes`: what a reader of the results must know.
    """

    models: dict[str, dict[str, Any]] = {}
    tasks: list[str] = []
    origins: dict[str, str] = {}
    commands: list[str] = []
    notes: list[str] = []
    failures: list[Failure] = []


class _Block(BaseModel):
    kind: Kind
    label: str
    prompt: Prompt
    cost: Cost
    settings: Settings


class _Scores(BaseModel):
    model_config = ConfigDict(extra="allow")

    main_score: float = Field(allow_inf_nan=False)
    epic_search: _Block


class _TaskFile(BaseModel):
    """The part of mteb's TaskResult that is read here; importing mteb for it would take seconds."""

    task_name: str
    dataset_revision: str
    scores: dict[str, list[_Scores]]


class _Experiment(BaseModel):
    """Beside these, settings that are not the usual ones (as {"search": "exact"}): they join the label."""

    model_config = ConfigDict(extra="allow")

    demos: int = 0
    seed: int = 0
    control: Control | None = None
    classes: str | None = None
    pairs: str | None = None
    demos_kind: DemonstrationKind | None = None

    @property
    def variant(self) -> str | None:
        """In words: what demonstrations are drawn from, show, or become, where that is not the usual."""
        classes = f"class {self.classes}" if self.classes else None
        pairs = f"pairs {self.pairs}" if self.pairs else None
        kind = f"as {self.demos_kind}" if self.demos_kind else None
        return ", ".join(part for part in (classes, pairs, kind) if part) or None


class _Meta(BaseModel):
    name: str
    revision: str
    experiment_kwargs: _Experiment | None = None


class _ItemsFile(BaseModel):
    metric: str
    form: Form
    ids: list[str]
    values: list[float]
    gold: list[float] | None = None


def entry_label(model: str, *, demos: int, control: str | None, variant: str | None) -> str:
    """The name of (model, number of demonstrations, control, variant) in tables."""
    parts = (f"@{demos}" if demos else "", f"-{control}" if control else "", f" ({variant})" if variant else "")
    return model + "".join(parts)


def read_results(folder: Path) -> list[Result]:
    """Every result under the folder that an evaluation wrote (or its `results`, or one model's folder in that).

    In the order of `run.json` where there is one: models, then numbers of demonstrations, controls and seeds. Where two
    revisions share a label, the label gets the revision. Raises UserError where there are no results, naming a file
    that cannot be read, and naming both where two files hold the same result.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the one that `epic-search eval --out` wrote")
    inner = folder / "results"
    root = inner if inner.is_dir() else folder
    files = [
        path
        for path in sorted(root.rglob("*.json"))
        if path.name not in {"model_meta.json", RUN_FILE} and path.parent.name != "items"
    ]
    if not files:
        raise UserError(f"{folder} holds no results; give the folder that `epic-search eval --out` wrote")
    metas: dict[Path, _Meta] = {}
    results = []
    for path in files:
        if path.parent not in metas:
            metas[path.parent] = _read(path.parent / "model_meta.json", _Meta)
        results.append(_read_result(path, metas[path.parent]))
    results = _with_distinct_labels(results)
    _refuse_duplicates(results)
    run = read_run(folder)
    models = _places(run.models if run else (), {result.model for result in results})
    tasks = _places(run.tasks if run else (), {result.task for result in results})

    def place(result: Result) -> tuple[int, ...]:
        control = 1 + CONTROLS.index(result.control) if result.control else 0
        kind = KINDS.index(result.kind)
        return models[result.model], result.demos, control, kind, tasks[result.task], result.seed

    return sorted(results, key=place)


def _places(first: Iterable[str], names: set[str]) -> dict[str, int]:
    """The place of each name: those of `first` in its order, then the others by name."""
    return {name: i for i, name in enumerate(dict.fromkeys([*first, *sorted(names)]))}


def read_run(folder: Path) -> Run | None:
    """The run.json of the evaluation that the folder belongs to; None where there is none."""
    for candidate in (folder, *folder.resolve().parents[:4]):
        if (candidate / RUN_FILE).is_file() and (candidate == folder or (candidate / "results").is_dir()):
            return _read(candidate / RUN_FILE, Run)
    return None


def choose(reference: str) -> list[Result]:
    """The results that "PATH" or "PATH:LABEL" names; LABEL is an entry of a table, as "epic-mini@4".

    Raises UserError as read_results does, and for an unknown label, listing those there are.
    """
    if Path(reference).exists():
        return read_results(Path(reference))
    for at in [i for i, character in enumerate(reference) if character == ":"]:
        path, label = Path(reference[:at]), reference[at + 1 :]
        if path.is_dir():
            results = read_results(path)
            chosen = [result for result in results if result.label == label]
            if not chosen:
                raise UserError(f"{path} has no results of '{label}'; it has {', '.join(labels(results))}")
            return chosen
    raise UserError(f"there is no folder {reference}; give PATH or PATH:LABEL, as results/A:epic-mini@4")


def labels(results: Sequence[Result]) -> list[str]:
    """The labels of all entries, each once, in the order of the results."""
    return list(dict.fromkeys(result.label for result in results))


def _read_result(path: Path, meta: _Meta) -> Result:
    content = _load(path)
    if not _has_blocks(content):
        raise UserError(f"{path} was not written by epic-search eval: it has no '{BLOCK}' block; move it elsewhere")
    file = _check(path, content, _TaskFile)
    entries = [entry for split in file.scores.values() for entry in split]
    block = entries[0].epic_search
    experiment = meta.experiment_kwargs or _Experiment()
    return Result(
        model=_with_details(block.label, experiment.model_extra or {}),
        name=meta.name,
        revision=meta.revision,
        task=file.task_name,
        dataset_revision=file.dataset_revision,
        kind=block.kind,
        demos=experiment.demos,
        seed=experiment.seed,
        control=experiment.control,
        variant=experiment.variant,
        score=float(np.mean([entry.main_score for entry in entries])),
        prompt=block.prompt,
        cost=block.cost,
        settings=block.settings,
        items=_read_items(path.parent / "items" / path.name),
        path=path,
    )


def _with_details(label: str, details: dict[str, Any]) -> str:
    return f"{label} ({', '.join(f'{key} {value}' for key, value in sorted(details.items()))})" if details else label


def _has_blocks(content: Any) -> bool:
    scores = content.get("scores") if isinstance(content, dict) else None
    entries = [entry for split in scores.values() for entry in split] if isinstance(scores, dict) else []
    return bool(entries) and all(isinstance(entry, dict) and BLOCK in entry for entry in entries)


def _read_items(path: Path) -> Items | None:
    if not path.exists():
        return None
    file = _read(path, _ItemsFile)
    needs_gold = file.form in {"spearman", "average_precision"}
    lengths = {len(file.ids), len(file.values), len(file.gold or []) if needs_gold else len(file.values)}
    values = np.array(file.values, dtype=np.float64)
    gold = np.array(file.gold, dtype=np.float64) if needs_gold else None
    finite = np.isfinite(values).all() and (gold is None or np.isfinite(gold).all())
    if len(lengths) > 1 or len(set(file.ids)) < len(file.ids) or not finite:
        raise UserError(f"{path} is damaged: ids must be different, with one finite value each; run the task again")
    return Items(metric=file.metric, form=file.form, ids=tuple(file.ids), values=values, gold=gold)


def _with_distinct_labels(results: list[Result]) -> list[Result]:
    identities: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for result in results:
        identities[result.model].add((result.name, result.revision))

    def distinct(result: Result) -> Result:
        owners = identities[result.model]
        if len(owners) == 1:
            return result
        one_name = len({name for name, _ in owners}) == 1
        detail = result.revision[:8] if one_name else f"{result.name} {result.revision[:8]}"
        return dataclasses.replace(result, model=f"{result.model} ({detail})")

    return [distinct(result) for result in results]


def _refuse_duplicates(results: list[Result]) -> None:
    seen: dict[tuple[Any, ...], Path] = {}
    for result in results:
        key = (result.revision, result.task, result.label, result.seed)
        if key in seen:
            raise UserError(
                f"{seen[key]} and {result.path} are both {result.label} on {result.task} with seed {result.seed}; "
                "move one of them elsewhere"
            )
        seen[key] = result.path


def _read(path: Path, model: type[Model]) -> Model:
    return _check(path, _load(path), model)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; delete it and run the task again") from error


def _check(path: Path, content: Any, model: type[Model]) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path} is damaged at {where}: {first['msg']}; delete it and run the task again") from error
