"""What a run writes down while it goes: a line a step, the dev suite's scores, and warnings as soon as they are due."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from epic_search.encoder import Encoder
from epic_search.training.alarms import Row, Watch
from epic_search.training.dev_meter import DevMeter
from epic_search.training.recipe import Recipe
from epic_search.training.status import DEV, LOG, SOURCES, read_lines
from epic_search.training.tracker import Tracker

NO_MEASURE = ("step", "steps", "source")


class Journal:
    """Goes on after `step` steps: lines of later ones, which a stopped run left, are taken out first.

    `planned`: steps of the whole run by source. `say` hears each warning once, and the scores of the dev suite.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        *,
        step: int,
        planned: Mapping[str, int],
        dev: DevMeter | None,
        tracker: Tracker | None,
        say: Callable[[str], None],
    ) -> None:
        self._rows, dev_rows = _cut(out / LOG, step), _cut(out / DEV, step)
        (out / SOURCES).write_text(json.dumps(planned, indent=2) + "\n", encoding="utf-8")
        # Line by line: `train status` reads along.
        self._log = (out / LOG).open("a", encoding="utf-8", buffering=1)
        self._dev_log = out / DEV
        self._unmeasured = not dev_rows
        self._watch = Watch(recipe, planned=planned)
        self._recipe, self._dev, self._tracker, self._say = recipe, dev, tracker, say
        self._warn()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._log.close()
        if self._tracker is not None:
            self._tracker.close()

    def add(self, row: Row) -> None:
        """A step's line."""
        self._rows.append(row)
        self._log.write(json.dumps(row) + "\n")
        if self._tracker is not None:
            values = {f"train/{name}": value for name, value in row.items() if name not in NO_MEASURE}
            self._tracker.add(row["step"], {name: value for name, value in values.items() if value is not None})
        self._warn()

    def measure(self, encoder: Encoder, step: int) -> None:
        """Measure the encoder on the dev suite where it is time for that after `step` steps."""
        if self._dev is None or not self._due(step):
            return
        began = time.monotonic()
        scores = self._dev.scores(encoder)
        row = {"step": step, "seconds": time.monotonic() - began, "scores": scores}
        with self._dev_log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._unmeasured = False
        self._say(f"dev suite at step {step}: {'; '.join(_told(name, found) for name, found in scores.items())}")
        if self._tracker is not None:
            self._tracker.add(
                step,
                {
                    f"dev/{name}/{column}": value
                    for name, found in scores.items()
                    for column, value in found.items()
                    if column != "metric"
                },
            )

    def _due(self, step: int) -> bool:
        assert self._recipe.dev is not None
        if step == 0:
            return self._unmeasured
        return step % self._recipe.dev.every == 0 or step == self._recipe.optimizer.steps

    def _warn(self) -> None:
        for alarm in self._watch.new_alarms(self._rows):
            self._say(f"warning: {alarm.sentence}")


def _told(name: str, found: Mapping[str, Any]) -> str:
    words = {"with_demonstrations": "with demonstrations", "shuffled": "shuffled"}
    parts = [f"{name} {found['without']:.3f}"]
    parts += [f"{said} {found[column]:.3f}" for column, said in words.items() if column in found]
    return ", ".join(parts)


def _cut(path: Path, step: int) -> list[Row]:
    """The lines of a log up to a step, which are all that it then holds."""
    rows = [row for row in read_lines(path) if row["step"] <= step]
    if path.is_file():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows
