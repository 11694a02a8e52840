"""The status of a run: read from its folder while it is written, and silent about sound runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from epic_search.errors import UserError
from epic_search.training import curves, status, trainer
from epic_search.training.alarms import Watch
from epic_search.training.heldout import Quality
from epic_search.training.recipe import Recipe
from epic_search.training.status import RunStatus, read_status, save_heldout

RESULTS = Path(__file__).parent.parent.parent / "train" / "results"
Change = Callable[[int], dict[str, Any]]
STEPS = 200


def log_row(step: int) -> dict[str, Any]:
    """A step of a sound run."""
    labels = step % 2 == 0
    return {
        "step": step,
        "steps": STEPS,
        "source": "labels/colours" if labels else "pairs: find it",
        "loss": 4 - 3 * step / STEPS,
        "without": 2.0,
        "with_demonstrations": 1.6,
        "distillation": None if labels else 0.5,
        "accuracy_without": 0.5,
        "accuracy_with": 0.6,
        "passage_cosine": 0.3,
        "gradient_norm": 10.0 + step % 3,
        "learning_rate": 1e-4,
        "padding": 0.1,
        "memory_mb": 1000.0 + step,
        "pairs_per_second": 5.0 + step % 2,
        "tokens_per_second": 1000.0,
        "seconds": 2.0 * step,
    }


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder with `steps` of STEPS taken; `change(step)` replaces columns of the log.

    `planned`: steps of the whole run by source, which runs of older versions do not tell.
    """
    (tmp_path / "data").mkdir()
    for name in ("pairs.jsonl.gz", "colours.jsonl"):
        (tmp_path / "data" / name).touch()

    def make(
        steps: int = STEPS, change: Change = lambda _: {}, planned: dict[str, int] | None = None, **recipe: Any
    ) -> Path:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fields = {
            "name": "test",
            "start": "somewhere",
            "data": {
                "pairs": [{"files": f"{tmp_path}/data/pairs*"}],
                "labels": [{"files": f"{tmp_path}/data/colours.jsonl"}],
            },
            "optimizer": {"steps": STEPS, "batch_size": 64, "warmup_steps": 10},
            "checkpoint_steps": 20,
        }
        (folder / "recipe.json").write_text(Recipe.model_validate(fields | recipe).model_dump_json())
        lines = [json.dumps(log_row(step) | change(step)) + "\n" for step in range(1, steps + 1)]
        (folder / "log.jsonl").write_text("".join(lines))
        if planned is not None:
            (folder / "sources.json").write_text(json.dumps(planned))
        return folder

    return make


def add_checkpoint(folder: Path, step: int) -> None:
    progress = {"step": step, "seconds": 2.0 * step, "before": {"pairs": 9, "accuracy_at_1": 0.1, "ndcg_at_10": 0.2}}
    state = folder / f"state-{step:07d}"
    state.mkdir()
    (state / "progress.json").write_text(json.dumps(progress))


def age(folder: Path, seconds: float) -> RunStatus:
    return read_status(folder, now=(folder / "log.jsonl").stat().st_mtime + seconds)


def test_the_trends_are_columns_of_the_log() -> None:
    assert set(status.TRENDS) <= set(trainer.StepReport.__dataclass_fields__)


def test_a_run_under_way(run: Callable[..., Path]) -> None:
    folder = run(100)
    add_checkpoint(folder, 80)
    found = age(folder, 30)
    assert (found.name, found.state, found.step, found.steps) == ("test", "running", 100, STEPS)
    assert (found.seconds, found.seconds_left, found.quiet_seconds) == (200, 200, pytest.approx(30))
    assert (found.tokens_per_second, found.pairs_per_second, found.learning_rate) == (1000, 5.5, 1e-4)
    assert (found.checkpoint_step, found.window) == (80, 20)
    assert (found.padding, found.memory_mb) == (pytest.approx(0.1), 1100.0)
    assert found.before is not None and found.before["pairs"] == 9 and found.after is None
    trends = {trend.name: trend for trend in found.trends}
    assert trends["loss"].start == pytest.approx(4 - 3 * 10.5 / STEPS)
    assert trends["loss"].now == pytest.approx(4 - 3 * 90.5 / STEPS)
    assert trends["distillation"].now == 0.5, "steps without a value do not count"
    assert found.drawn == {"pairs: find it": 50, "labels/colours": 50}
    assert found.never_drawn == [] and found.warnings == []


def test_before_the_first_step(run: Callable[..., Path]) -> None:
    folder = run(0)
    for found in (read_status(folder), (folder / "log.jsonl").unlink() or read_status(folder)):
        assert (found.state, found.step, found.seconds_left, found.warnings) == ("starting", 0, None, [])
        assert all(trend.start is None for trend in found.trends)


def test_one_step(run: Callable[..., Path]) -> None:
    found = read_status(run(1))
    assert (found.step, found.window, found.seconds_left) == (1, 1, 2.0 * (STEPS - 1))


def test_a_finished_run(run: Callable[..., Path]) -> None:
    folder = run()
    assert age(folder, 30).state == "running", "the encoder is not there yet"
    (folder / "encoder").mkdir()
    (folder / "encoder" / "encoder.json").touch()
    save_heldout(folder, before=Quality(8, 0.1, 0.2, 0.3), after=Quality(8, 0.4, 0.5, 0.6))
    found = age(folder, 1e6)
    assert (found.state, found.seconds_left, found.warnings) == ("finished", 0, [])
    assert found.before is not None and found.before["ndcg_at_10"] == 0.2
    assert found.after is not None and found.after["ndcg_at_10"] == 0.5


def test_a_stopped_run(run: Callable[..., Path]) -> None:
    folder = run(60)
    assert age(folder, 110).state == "running"
    found = age(folder, 600)
    assert found.state == "stopped"
    assert found.warnings == [
        "the run has stopped: no new step for 10 min; give its command again with --resume",
    ]
    slow = run(60, lambda step: {"seconds": 30.0 * step})
    assert age(slow, 600).state == "running", "lines are sure to be written at checkpoints only"


def test_a_line_being_written_is_left_out(run: Callable[..., Path]) -> None:
    folder = run(10)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 11, "ste')
    assert read_status(folder).step == 10
    with (folder / "log.jsonl").open("a") as log:
        log.write("\n")
    with pytest.raises(UserError, match=r"log\.jsonl, line 11 is damaged"):
        read_status(folder)


def test_what_is_no_run(tmp_path: Path, run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"holds no training run: it has no recipe\.json"):
        read_status(tmp_path / "absent")
    folder = run(10)
    (folder / "recipe.json").write_text('{"nonsense": 1}')
    with pytest.raises(UserError, match="damaged or of another version"):
        read_status(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda step: {"loss": float("nan")} if step == 30 else {}, "loss is nan at step 30"),
        (lambda step: {"gradient_norm": 300.0} if step == 90 else {}, "jumped once, last at step 90 .* to 27 times"),
        (lambda step: {"accuracy_without": 0.016, "accuracy_with": 0.02} if step % 2 else {}, "on pairs is at chance"),
        (lambda _: {"with_demonstrations": 1.98}, r"nearly equal \(median difference 1.0% over 50 batches\)"),
        (lambda step: {"loss": 1e-6} if step % 2 else {}, "pairs: find it teaches nothing"),
        (lambda _: {"source": "labels/colours"}, "never drawn in 120 of 200 steps: pairs;"),
        (
            lambda step: {"passage_cosine": 0.2 if step < 70 else 0.95},
            "have collapsed: .* is 0.950 over .* above 0.917",
        ),
        (lambda step: {"loss": 3 + step % 2 if step < 60 else 5 + step % 2}, "loss is rising: .* it lies 2.00 above"),
        (lambda step: {"gradient_norm": 0.0} if step % 2 else {}, "find it teaches nothing: its gradient was 0 in all"),
        (
            lambda step: {"without": None, "with_demonstrations": None, "distillation": None} if step % 2 == 0 else {},
            "labels/colours teaches nothing: no query of it counted in all of 60 steps",
        ),
    ],
)
def test_each_warning(run: Callable[..., Path], change: Change, said: str) -> None:
    [warning] = read_status(run(120, change)).warnings
    assert re.search(said, warning), warning
    assert json.dumps(read_status(run(120, change)).trends[0].now, allow_nan=False)


def test_pairs_alone_may_agree_more(run: Callable[..., Path]) -> None:
    """Pairs whose instruction says all gain little from demonstrations: only equal losses are a sign."""
    close = run(120, lambda _: {"source": "pairs: find it", "with_demonstrations": 1.97})
    assert not any("nearly equal" in warning for warning in read_status(close).warnings)
    equal = run(120, lambda _: {"source": "pairs: find it", "with_demonstrations": 1.999})
    assert any("nearly equal" in warning for warning in read_status(equal).warnings)
    without = run(120, lambda _: {"with_demonstrations": 2.0}, objective={"demonstrations": 0})
    assert read_status(without).warnings == []


def test_early_steps_are_not_judged(run: Callable[..., Path]) -> None:
    poor = {"with_demonstrations": 2.0, "accuracy_without": 0.01, "accuracy_with": 0.01, "passage_cosine": 0.99}
    assert read_status(run(50, lambda _: poor)).warnings == []


def test_what_is_planned_is_known_at_once(run: Callable[..., Path]) -> None:
    planned = {"pairs: find it": 100, "pairs: rare": 1, "labels/colours": 99, "tiny": 0}
    folder = run(2, planned=planned)
    assert read_status(folder).warnings == [
        "never drawn in the 200 steps of the run: tiny; raise their weight, or lower batch_size below their number of "
        "pairs"
    ]
    assert read_status(folder).never_drawn == ["pairs: rare", "tiny"]
    assert read_status(run(150, planned=planned | {"tiny": 1})).warnings == [], "their turn may still come"


def test_a_higher_temperature_allows_closer_vectors_to_collapse(run: Callable[..., Path]) -> None:
    """At 0.05 a cosine of 1 among 64 at 0.91 gets a tenth of the probability, at 0.02 nearly two thirds."""
    close: Change = lambda _: {"passage_cosine": 0.91}  # noqa: E731
    assert read_status(run(120, close)).warnings == []
    [warning] = read_status(run(120, close, objective={"temperature": 0.05})).warnings
    assert "have collapsed" in warning


def test_a_watch_tells_each_kind_once(run: Callable[..., Path]) -> None:
    recipe, rows = status.read_run(run(120, lambda step: {"gradient_norm": 300.0} if step in (60, 90) else {}))
    watch = Watch(recipe, planned={"never": 0})
    told = [(count, alarm.kind) for count in range(len(rows) + 1) for alarm in watch.new_alarms(rows[:count])]
    assert told == [(0, "never drawn"), (60, "spike")]


def test_data_that_is_not_here(run: Callable[..., Path]) -> None:
    folder = run(120, data={"pairs": [{"files": "/absent/*.jsonl"}]})
    assert read_status(folder).never_drawn is None


def test_data_sets_by_their_source_names(run: Callable[..., Path]) -> None:
    data = {"pairs": [{"dataset": "org/set"}, {"builtin": "python-stdlib", "task": "find it"}]}
    folder = run(120, lambda _: {"source": "python-stdlib: find it"}, data=data)
    assert read_status(folder).never_drawn == ["org/set"]


def test_the_published_log_raises_no_warning(run: Callable[..., Path]) -> None:
    folder = run(0, data={"pairs": [{"files": "/absent/*.jsonl"}]})
    shutil.copy(RESULTS / "epic-mini-1-log.jsonl", folder / "log.jsonl")
    found = read_status(folder)
    assert found.warnings == []
    now = {trend.name: trend.now for trend in found.trends}
    start = {trend.name: trend.start for trend in found.trends}
    assert now["loss"] < start["loss"]


def test_columns_that_an_older_log_lacks(run: Callable[..., Path]) -> None:
    folder = run(30)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for row in rows:
        for column in ("distillation", "passage_cosine", "padding", "memory_mb"):
            del row[column]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_status(folder)
    now = {trend.name: trend.now for trend in found.trends}
    assert (now["distillation"], now["passage_cosine"], found.padding, found.memory_mb) == (None,) * 4
    assert found.warnings == []


def test_curves(run: Callable[..., Path]) -> None:
    pytest.importorskip("matplotlib")
    folder = run(60, lambda step: {"loss": float("nan")} if step == 5 else {}, name="a < b")
    svg, page = curves.write_curves(folder)
    root = xml.etree.ElementTree.parse(svg).getroot()
    text = "".join(root.itertext())
    for panel in curves.PANELS:
        assert panel.title in text
    assert page.read_text().count("<svg") == 1
    assert "a &lt; b" in page.read_text() and "60 of 200 steps" in page.read_text()
    first = svg.read_bytes()
    curves.write_curves(folder)
    assert svg.read_bytes() == first
    with pytest.raises(UserError, match="no step to draw yet"):
        curves.write_curves(run(0))


def dev_row(step: int) -> dict[str, Any]:
    """Scores that grow, and demonstrations that come to be read."""
    scores = {"without": step / 400, "with_demonstrations": step / 200, "shuffled": step / 400}
    return {
        "step": step,
        "seconds": 1.0,
        "scores": {"heldout": {"metric": "ndcg_at_10", "without": 0.5}, "sst2": {"metric": "accuracy"} | scores},
    }


def test_the_dev_suite(run: Callable[..., Path]) -> None:
    pytest.importorskip("matplotlib")
    folder = run(120)
    assert read_status(folder).dev == []
    (folder / "dev.jsonl").write_text("".join(json.dumps(dev_row(step)) + "\n" for step in (0, 50, 100)))
    heldout, sst2 = read_status(folder).dev
    assert (heldout.name, heldout.metric, heldout.start, heldout.now) == (
        "heldout",
        "ndcg_at_10",
        {"without": 0.5},
        {"without": 0.5},
    )
    assert (sst2.steps, sst2.start["without"], sst2.now["without"]) == ([0, 50, 100], 0.0, 0.25)
    scores, gains = curves.dev_panels(status.read_dev(folder))
    assert list(scores[0].columns) == ["heldout", "sst2"] and list(gains[0].columns) == ["sst2"]
    assert [point["sst2"] for point in gains[1]] == [0.0, 0.125, 0.25]
    text = curves.write_curves(folder)[0].read_text()
    assert scores[0].title in text and gains[0].title in text


def test_curves_without_matplotlib(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'epic-search\[eval\]'"):
        curves.write_curves(run(10))


def test_smoothing() -> None:
    assert curves.smoothed([1.0, 3.0, 5.0]) == [1.0, 2.0, 3.0]
    assert curves.smoothed([0.0] * 30 + [float(curves.SMOOTHED)])[-1] == 1.0


def test_no_torch_is_loaded(run: Callable[..., Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from epic_search.training.status import read_status\n"
        "read_status(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, run(10)], check=True, env=os.environ)
