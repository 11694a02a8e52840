"""The evaluation loop: every model on every task under every condition, resumable, no failure stopping the rest.

Results are mteb's own files in mteb's cache layout: `OUT/results/MODEL/REVISION/[experiments/CONDITION/]TASK.json`. In
each entry of scores stands one more key, `epic_search`: the prompt that was used, what it cost, and the settings.
`items/TASK.json` beside it holds the score of each query or text, from which intervals and paired differences come.
"""

import json
import logging
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from epic_search.encoder.prompt import DemonstrationKind
from epic_search.errors import UserError
from epic_search.evaluation.job import WORK_FOLDER, Job, Pools, file_digest, write_json
from epic_search.evaluation.kinds import ClassDemonstrations, Control
from epic_search.evaluation.models import Condition, EvaluatedModel
from epic_search.evaluation.results import RUN_FILE, Failure, Run, read_run
from epic_search.evaluation.tasks import FROM_HUB, EvalTask

if TYPE_CHECKING:
    from mteb.cache import ResultCache

LOG_FILE = "failures.log"


@dataclass(frozen=True)
class Plan:
    """What is run: every model on every task, with each number of demonstrations, seeds and controls.

    `pairs` is a file of demonstrations for all tasks, in place of their training splits; `classes` tells what a
    demonstration of a class shows, and `demos_kind` what it becomes, in place of what each model was trained to read.
    `command` and `notes` (what a reader of the results must know) are kept with them.
    """

    tasks: Sequence[EvalTask]
    models: Sequence[EvaluatedModel]
    demos: Sequence[int] = (0,)
    seeds: Sequence[int] = (0,)
    controls: Sequence[Control] = ()
    pairs: Path | None = None
    classes: ClassDemonstrations = "examples"
    demos_kind: DemonstrationKind | None = None
    command: str = ""
    notes: Sequence[str] = ()

    def conditions(self, model: EvaluatedModel) -> list[Condition]:
        """Those that a model can be run under: one where it takes no prompts, and texts have no random vectors.

        They say what demonstrates a class only where that matters to a task.
        """
        if model.demos_kind is None:
            return [Condition()]
        kind = None if self.demos_kind == model.demos_kind else self.demos_kind
        pairs = f"{self.pairs.name.partition('.')[0]}-{file_digest(self.pairs)[:8]}" if self.pairs is not None else None
        classes = self.classes if any(map(self.pools().name_classes, self.tasks)) else "examples"
        conditions = [Condition()] if 0 in self.demos else []
        for control in (None, *self.controls):
            if control == "random" and (kind or model.demos_kind) == "text":
                continue
            for k in filter(None, self.demos):
                conditions += [Condition(k, seed, control, classes, pairs, kind) for seed in self.seeds]
        return conditions

    def pools(self) -> Pools:
        """What demonstrations are drawn from."""
        return Pools(pairs=self.pairs, classes=self.classes)

    def jobs(self) -> Iterator[tuple[EvaluatedModel, EvalTask, Condition]]:
        """All that is to be done, in order: one corpus at a time, under all its prompts."""
        for model in self.models:
            conditions = self.conditions(model)
            for task in self.tasks:
                if task.kind in model.kinds:
                    for condition in conditions:
                        yield model, task, condition


@dataclass(frozen=True)
class Progress:
    """One job begun or ended. `score` is a fraction; `error` is one sentence."""

    state: Literal["running", "done", "kept", "failed"]
    number: int
    total: int
    model: str
    task: str
    condition: str
    score: float | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass
class RunReport:
    """What a run did."""

    done: int = 0
    kept: int = 0
    failures: list[Failure] = field(default_factory=list)


def run(
    plan: Plan, *, out: Path, overwrite: bool = False, report: Callable[[Progress], None] = lambda _: None
) -> RunReport:
    """Run what is not yet in `out`; everything again with `overwrite`.

    Raises UserError, before anything runs, when `out` holds results of another version of a model, and when no model
    can do any of the tasks. An error in one job is reported and the next one runs; Ctrl-C ends the run with all
    finished jobs kept.
    """
    jobs = list(plan.jobs())
    if not jobs:
        names = ", ".join(model.label for model in plan.models)
        raise UserError(f"there is nothing to run: {names} cannot do any of the {len(plan.tasks)} tasks given")
    with _only_run(out):
        return _run(plan, jobs, out, overwrite=overwrite, report=report)


def _run(
    plan: Plan,
    jobs: Sequence[tuple[EvaluatedModel, EvalTask, Condition]],
    out: Path,
    *,
    overwrite: bool,
    report: Callable[[Progress], None],
) -> RunReport:
    from mteb.cache import ResultCache

    cache, pools = ResultCache(out), plan.pools()
    _require_same_models(plan, out)
    _require_same_data(plan, jobs, cache, out)
    done = RunReport()
    _save_run(plan, out, done)
    hush()
    offline = ""  # the first failure for want of a network: further tasks from the hub need not wait for theirs
    for number, (model, task, condition) in enumerate(jobs, 1):
        here = Progress("running", number, len(jobs), model.label, task.name, str(condition))
        report(here)
        started = time.monotonic()
        try:
            job = Job(model, task, condition, cache, out)
            score = None if overwrite else job.stored_score(pools)
            if score is None and offline and task.origin.startswith(FROM_HUB):
                raise UserError(offline)
            if score is not None:
                done.kept += 1
                here = replace(here, state="kept", score=score)
            else:
                score = job.run(pools)
                done.done += 1
                here = replace(here, state="done", score=score, seconds=time.monotonic() - started)
        except Exception as error:
            # Whatever one model does on one task, the rest of a long run is worth having.
            mistake = isinstance(error, UserError) or _is_network_error(error)
            failure = Failure(
                model=model.label, task=task.name, condition=str(condition), error=sentence(error), mistake=mistake
            )
            done.failures.append(failure)
            if _is_network_error(error):
                offline = failure.error
            elif not mistake:
                _log(out, failure)
            here = replace(here, state="failed", error=failure.error, seconds=time.monotonic() - started)
        report(here)
        _save_run(plan, out, done)
        if number == len(jobs) or jobs[number][:2] != (model, task):
            shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return done


def sentence(error: Exception) -> str:
    """An error in one sentence: a user's own, the way around a missing network, or else type and message."""
    if isinstance(error, UserError):
        return str(error)
    if _is_network_error(error):
        return (
            f"the task's data could not be fetched from the Hugging Face hub ({type(error).__name__}); without a "
            "network, give a folder of data, in BEIR's or one of the other layouts: epic-search eval FOLDER"
        )
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _is_network_error(error: BaseException | None) -> bool:
    """Whether a connection that failed, or the hub's offline mode, stands anywhere in the chain of causes."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        # httpx and requests name theirs ConnectError and ConnectionError; datasets raises the built-in one.
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        if isinstance(error, ConnectionError) and not isinstance(error, BrokenPipeError):
            return True
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError", "ReadTimeout"):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Keeps a second run out of the folder: they would take away each other's indexes."""
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another evaluation writes into {out} now; wait for it, or name another --out") from error
    except OSError as error:
        raise UserError(f"the folder {out} cannot be written to: {error.strerror}; name another --out") from error
    try:
        yield
    finally:
        lock.release()


def _require_same_models(plan: Plan, out: Path) -> None:
    by_identity: dict[tuple[str, str], str] = {}
    for model in plan.models:
        other = by_identity.setdefault(_identity(model), model.label)
        if other != model.label:
            raise UserError(f"'{other}' and '{model.label}' are the same model; leave one of them out")
    labels = [model.label for model in plan.models]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two models are called '{label}'; give one a name of its own: --model NAME=MODEL")
    known = _read_run(out).models
    for model in plan.models:
        names = [name for name, there in known.items() if (there["name"], there["revision"]) == _identity(model)]
        if names and model.label not in names:
            raise UserError(f"{out} holds results of '{model.label}' under the name '{names[0]}'; use that name again")
        there = known.get(model.label)
        if there is not None and (there["name"], there["revision"]) != _identity(model):
            raise UserError(
                f"{out} holds results of '{model.label}' {there['revision']}, and this one is {model.revision}; "
                "name another folder with --out, or give this model a name of its own: --model NAME=MODEL"
            )


def _identity(model: EvaluatedModel) -> tuple[str, str]:
    return model.name, model.revision


def _require_same_data(
    plan: Plan, jobs: Sequence[tuple[EvaluatedModel, EvalTask, Condition]], cache: "ResultCache", out: Path
) -> None:
    """One folder holds one version of a task: results that this run would not replace must be of the same data."""
    origins = _read_run(out).origins
    for task in plan.tasks:
        if origins.get(task.name, task.origin) != task.origin:
            raise UserError(
                f"{out} holds results of another task '{task.name}', from {origins[task.name]}; name another --out"
            )
    revisions: dict[str, str] = {}
    replaced: set[Path] = set()
    for model, task, condition in jobs:
        with suppress(Exception):  # a task that cannot be made is reported when its turn comes
            job = Job(model, task, condition, cache, out)
            revisions[job.file.name] = job.mteb_task.metadata.dataset["revision"]
            replaced.add(job.file)
    for file in sorted((out / "results").rglob("*.json")):
        if file.name in revisions and file.parent.name != "items" and file not in replaced:
            try:
                revision = json.loads(file.read_text(encoding="utf-8"))["dataset_revision"]
            except (OSError, ValueError, LookupError, TypeError):  # cut off by a kill, or no result
                continue
            if revision != revisions[file.name]:
                raise UserError(
                    f"{file} is of another version of the task's data and this run does not replace it; "
                    "name another --out, or delete that file"
                )


def _read_run(out: Path) -> Run:
    return read_run(out) or Run()


def _save_run(plan: Plan, out: Path, report: RunReport) -> None:
    known = _read_run(out)
    models = {model.label: {"name": model.name, "revision": model.revision} for model in plan.models}
    run = Run(
        models=known.models | models,
        tasks=list(dict.fromkeys([*known.tasks, *(task.name for task in plan.tasks)])),
        origins=known.origins | {task.name: task.origin for task in plan.tasks},
        commands=list(dict.fromkeys([*known.commands, plan.command])),
        notes=list(dict.fromkeys([*known.notes, *plan.notes])),
        failures=report.failures,
    )
    write_json(out / RUN_FILE, run.model_dump())


def hush() -> None:
    """Let libraries keep their progress bars and remarks to themselves: the reporter tells what goes on."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    for name in ("mteb", "sentence_transformers", "sklearn", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)


def _log(out: Path, failure: Failure) -> None:
    """The whole traceback of a failure, for whoever looks for its cause."""
    with (out / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(f"{failure.model}, {failure.task}, {failure.condition}\n{traceback.format_exc()}\n")
