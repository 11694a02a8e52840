"""How a training run is doing, from its folder alone: progress, trends, what it was shown, and what looks wrong.

Nothing here needs torch: a run can be looked at from any machine that sees the folder.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from epic_search.encoder.config import CONFIG_FILE, RESULT, first_problem
from epic_search.errors import UserError
from epic_search.training.alarms import Row, find_alarms, unseen_sources
from epic_search.training.recipe import Recipe

if TYPE_CHECKING:
    from epic_search.training.heldout import Quality

RECIPE, LOG, HELDOUT, PROGRESS = "recipe.json", "log.jsonl", "heldout.json", "progress.json"
SOURCES, DEV = "sources.json", "dev.jsonl"
WINDOW = 50  # steps that a trend is the mean of, at most
QUIET_STEPS = 20
QUIET_SECONDS = 120.0  # without a new line, before a run can count as stopped
TRENDS = (
    "loss",
    "without",
    "with_demonstrations",
    "distillation",
    "text_distillation",
    "accuracy_without",
    "accuracy_with",
    "passage_cosine",
    "gradient_norm",
)
State = Literal["starting", "running", "stopped", "finished"]


@dataclass(frozen=True)
class Trend:
    """A column of the log: its mean over the first steps and over the last ones, None where it has no values."""

    name: str
    start: float | None
    now: float | None


@dataclass(frozen=True)
class DevTrend:
    """A task of the dev suite: its scores at the first and at the last of the `steps` at which it was measured.

    Scores are under `without`, and where there were demonstrations under `with_demonstrations` and `shuffled`.
    """

    name: str
    metric: str
    steps: list[int]
    start: dict[str, float]
    now: dict[str, float]


@dataclass(frozen=True)
class RunStatus:
    """A run as its folder shows it.

    `seconds`: time spent on steps so far, and `seconds_left` at the rate of the last steps, over which the other rates
    are medians. `quiet_seconds`: since the log last grew. `window`: how many steps each mean of a trend is over;
    `padding` is one, too, and `memory_mb` the peak so far, both None in the logs of older versions.
    `before`, `after`: quality on held-out pairs, where it is known. `drawn`: steps by source, the most first;
    `never_drawn`: sources without a step so far, or in a run by an older version files and data sets without one, None
    where the files are not on this machine.
    """

    name: str
    folder: str
    state: State
    step: int
    steps: int
    seconds: float
    seconds_left: float | None
    quiet_seconds: float | None
    tokens_per_second: float | None
    pairs_per_second: float | None
    learning_rate: float | None
    padding: float | None
    memory_mb: float | None
    checkpoint_step: int | None
    window: int
    trends: list[Trend]
    dev: list[DevTrend]
    before: dict[str, float] | None
    after: dict[str, float] | None
    drawn: dict[str, int]
    never_drawn: list[str] | None
    warnings: list[str]


def read_status(folder: Path, *, now: float | None = None) -> RunStatus:
    """The status of the run in `folder` at the time `now` (seconds since 1970; None: this moment).

    Raises UserError when the folder holds no run, or one that cannot be read.
    """
    recipe, rows = read_run(folder)
    steps = recipe.optimizer.steps
    window = min(WINDOW, max(1, len(rows) // 5))
    first, last = rows[:window], rows[-window:]
    quiet = max(0.0, (time.time() if now is None else now) - (folder / LOG).stat().st_mtime) if rows else None
    step_seconds = _step_seconds(rows, window)
    state = _state(folder, recipe, rows, quiet=quiet, step_seconds=step_seconds)
    planned = _json(folder / SOURCES) if (folder / SOURCES).is_file() else None
    warnings = [alarm.sentence for alarm in find_alarms(recipe, rows, planned=planned)]
    if state == "stopped":
        warnings.append(
            f"the run has stopped: no new step for {(quiet or 0) / 60:.0f} min; give its command again with --resume"
        )
    checkpoint, before = _checkpoint(folder)
    heldout = _json(folder / HELDOUT) if (folder / HELDOUT).is_file() else {}
    return RunStatus(
        name=recipe.name,
        folder=str(folder),
        state=state,
        step=rows[-1]["step"] if rows else 0,
        steps=steps,
        seconds=rows[-1]["seconds"] if rows else 0.0,
        seconds_left=(steps - rows[-1]["step"]) * step_seconds if step_seconds is not None else None,
        quiet_seconds=quiet,
        tokens_per_second=median(row["tokens_per_second"] for row in last) if last else None,
        pairs_per_second=median(row["pairs_per_second"] for row in last) if last else None,
        learning_rate=rows[-1]["learning_rate"] if rows else None,
        padding=_mean(last, "padding"),
        memory_mb=rows[-1].get("memory_mb") if rows else None,
        checkpoint_step=checkpoint,
        window=window if rows else 0,
        trends=[Trend(name, _mean(first, name), _mean(last, name)) for name in TRENDS],
        dev=_dev_trends(read_dev(folder)),
        before=heldout.get("before") or before,
        after=heldout.get("after"),
        drawn=dict(Counter(row["source"] for row in rows).most_common()),
        never_drawn=unseen_sources(recipe, rows, planned=planned),
        warnings=warnings,
    )


def read_run(folder: Path) -> tuple[Recipe, list[Row]]:
    """The recipe of a run and the lines of its log so far; a last line that is still being written is left out.

    Raises UserError when the folder holds no run, or one that cannot be read.
    """
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(f"{folder} holds no training run: it has no {RECIPE}; give the folder that train wrote into")
    try:
        recipe = Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path} is damaged or of another version of epic-search: wrong at {first_problem(error)}"
        ) from error
    return recipe, read_lines(folder / LOG)


def read_dev(folder: Path) -> list[Row]:
    """The lines of the dev suite: step, seconds, and scores ({task: {metric, without, ...}}); [] without one."""
    return read_lines(folder / DEV)


def read_lines(path: Path) -> list[Row]:
    """The whole lines of a log, [] where it does not exist; raises UserError when one of them is damaged."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is damaged ({error}); take the line out") from error
        rows.append(row)
    return rows


def save_heldout(folder: Path, *, before: "Quality", after: "Quality") -> None:
    """Keep the quality on held-out pairs before and after the run in its folder."""
    found = {"before": asdict(before), "after": asdict(after)}
    (folder / HELDOUT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _dev_trends(rows: Sequence[Row]) -> list[DevTrend]:
    trends = []
    for name in dict.fromkeys(name for row in rows for name in row["scores"]):
        measured = [row for row in rows if name in row["scores"]]
        first, last = dict(measured[0]["scores"][name]), dict(measured[-1]["scores"][name])
        metric = first.pop("metric")
        last.pop("metric")
        trends.append(DevTrend(name, metric, [row["step"] for row in measured], first, last))
    return trends


def _state(
    folder: Path, recipe: Recipe, rows: Sequence[Row], *, quiet: float | None, step_seconds: float | None
) -> State:
    if not rows or quiet is None or step_seconds is None:
        return "starting"
    if rows[-1]["step"] == recipe.optimizer.steps and (folder / RESULT / CONFIG_FILE).is_file():
        return "finished"
    return "stopped" if quiet > max(QUIET_SECONDS, QUIET_STEPS * step_seconds) else "running"


def _step_seconds(rows: Sequence[Row], window: int) -> float | None:
    """Mean time of the last steps, checkpoints among them."""
    if not rows:
        return None
    begin = rows[-window - 1] if len(rows) > window else {"step": 0, "seconds": 0.0}
    taken: float = rows[-1]["seconds"] - begin["seconds"]
    return taken / (rows[-1]["step"] - begin["step"])


def _checkpoint(folder: Path) -> tuple[int | None, dict[str, float] | None]:
    """The step of the last checkpoint, and the held-out quality from before the run that it carries along."""
    last = max(folder.glob("state-*[0-9]"), default=None)
    if last is None or not (last / PROGRESS).is_file():  # the run may be replacing it at this moment
        return None, None
    progress = _json(last / PROGRESS)
    return progress["step"], progress["before"]


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    return found


def _mean(rows: Sequence[Row], name: str) -> float | None:
    """Mean of a column's finite values: others are told by an alarm."""
    values = [row[name] for row in rows if row.get(name) is not None and math.isfinite(row[name])]
    return fmean(values) if values else None
