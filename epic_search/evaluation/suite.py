"""What a user asks to evaluate: suites (TOML lists of tasks), folders, and names of MTEB, as a list of tasks."""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field, model_validator

import epic_search
from epic_search.encoder.config import StrictModel, load_toml
from epic_search.errors import UserError
from epic_search.evaluation.kinds import Kind
from epic_search.evaluation.tasks import EvalTask, PairFile, benchmark_tasks, folder_task, mteb_tasks
from epic_search.training.recipe_files import expand

SUITES = Path(epic_search.__file__).parent / "suites"


class SuiteTask(StrictModel):
    """A task of a suite: a `folder` with the options of `folder_task`, or a task of MTEB by its name.

    Paths may hold ${NAME}; EPIC_SEARCH_DATA has a default. `instruction` = "" is none at all. `pairs_task` keeps of a
    training file with several tasks only the pairs of one.
    """

    folder: str | None = None
    mteb: str | None = None
    instruction: str | None = None
    pairs: str | None = None
    pairs_task: str | None = None
    name: str | None = Field(None, pattern=r"^[^/\\]+$")
    kind: Kind | None = None
    limit: int | None = Field(None, ge=1)
    set_aside: int | None = Field(None, ge=1)
    own_document: str | None = Field(None, min_length=1)
    labels: dict[str, str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_origin(self) -> "SuiteTask":
        if (self.folder is None) == (self.mteb is None):
            raise ValueError("give exactly one of folder (of local data) and mteb (the name of a task)")
        if self.pairs_task is not None and self.pairs is None:
            raise ValueError("pairs_task chooses rows of a file; give the file as pairs")
        if self.mteb is not None:
            options = ("name", "kind", "limit", "set_aside", "own_document", "labels")
            wrong = [option for option in options if getattr(self, option) is not None]
            if wrong:
                raise ValueError(
                    f"{' and '.join(wrong)} can only be set for a folder; MTEB's tasks are taken as they are"
                )
        return self

    def tasks(self) -> list[EvalTask]:
        """The task, its data read and checked; more than one where MTEB's name stands for several."""
        pairs = PairFile(_path(self.pairs), self.pairs_task) if self.pairs is not None else None
        if self.mteb is not None:
            try:
                return mteb_tasks(self.mteb, instruction=self.instruction, pairs=pairs)
            except KeyError as error:
                raise UserError(
                    f"there is no task '{self.mteb}' in MTEB{_nearest(self.mteb, _mteb_names())}"
                ) from error
        assert self.folder is not None
        return [
            folder_task(
                _path(self.folder),
                name=self.name,
                kind=self.kind,
                instruction=self.instruction,
                pairs=pairs,
                limit=self.limit,
                set_aside=self.set_aside,
                own_document=self.own_document,
                labels=self.labels,
            )
        ]


class Suite(StrictModel):
    """A list of tasks under a name."""

    name: str
    description: str = ""
    tasks: list[SuiteTask] = Field(min_length=1)


def load_suite(path: Path) -> Suite:
    """Read and check a suite, but not its tasks' data; raises UserError with the place of the first mistake."""
    return load_toml(path, Suite, what="suite")


def packaged_suites() -> list[str]:
    """The names of the suites that come with epic-search."""
    return sorted(file.stem for file in SUITES.glob("*.toml"))


def find_tasks(references: Sequence[str], *, say: Callable[[str], None] = lambda _: None) -> list[EvalTask]:
    """The tasks that a user named; all local data are read and checked.

    Each reference is, in this order, the name of a packaged suite, a suite file, a folder of data, or the name of an
    MTEB task or benchmark. `say` hears which tasks of a benchmark are left out because they are of another kind.
    Raises UserError for a reference that is none of these, with the names nearest to it, and for two tasks of one name.
    """
    tasks = [task for reference in references for task in _find(reference, say)]
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise UserError(
            f"two tasks are called '{twice[0]}'; leave one out, or give a folder another name in a suite (name = ...)"
        )
    return tasks


def _find(reference: str, say: Callable[[str], None]) -> list[EvalTask]:
    path = Path(reference).expanduser()
    if reference in packaged_suites():
        return _suite_tasks(SUITES / f"{reference}.toml")
    if path.suffix == ".toml":
        return _suite_tasks(path)
    if path.is_dir():
        return [folder_task(path)]
    if path.is_file():
        raise UserError(f"{reference} is a file; give a suite (.toml) or a folder of evaluation data")
    if os.sep in reference:
        raise UserError(f"the folder {reference} does not exist; give a folder of evaluation data")
    for find in (mteb_tasks, lambda name: benchmark_tasks(name, say=say)):
        try:
            return find(reference)
        except KeyError:  # not a name of this sort
            continue
    raise UserError(
        f"'{reference}' is no folder, no suite, and no task or benchmark of MTEB"
        f"{_nearest(reference, [*packaged_suites(), *_mteb_names()])}; "
        "for data of your own give the path of their folder"
    )


def _suite_tasks(path: Path) -> list[EvalTask]:
    tasks = []
    for number, entry in enumerate(load_suite(path).tasks, 1):
        try:
            tasks += entry.tasks()
        except UserError as error:
            raise UserError(f"the suite {path}, task {number}: {error}") from error
    return tasks


def _path(text: str) -> Path:
    found = expand(text)
    if len(found) > 1:
        raise UserError(f"{text} names {len(found)} files or folders; a task has one")
    return found[0]


def _mteb_names() -> list[str]:
    import mteb
    from mteb.get_tasks import TASK_LIST

    benchmarks = [name for benchmark in mteb.get_benchmarks() for name in (benchmark.name, *(benchmark.aliases or ()))]
    return [*(task.metadata.name for task in TASK_LIST), *benchmarks]


def _nearest(name: str, names: Sequence[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    return f" (nearest: {', '.join(by_lower[match] for match in near)})" if near else ""
