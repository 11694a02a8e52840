"""Measuring an encoder while it trains: what is measured, and that training does not notice."""

import json
from pathlib import Path
from typing import Any

import pytest

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError
from epic_search.training.dev_meter import DevMeter, evaluation_mode
from epic_search.training.recipe import Recipe
from epic_search.training.status import read_dev
from epic_search.training.tracker import check_tracker
from epic_search.training.trainer import StepReport, train
from tests.evaluation.conftest import row, write_rows


@pytest.fixture
def recipe(tmp_path: Path, tiny_config: EncoderConfig) -> Recipe:
    """Six steps on pairs, with dropout, and a dev suite without tasks."""
    pairs = [{"task": "t", "query": f"q {i}", "positive": f"the passage {i}"} for i in range(40)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    encoder = tiny_config.model_dump()
    encoder["lora"]["dropout"] = 0.2
    return Recipe.model_validate(
        {
            "name": "test",
            "encoder": encoder,
            "data": {"pairs": [{"files": str(tmp_path / "pairs.jsonl")}], "heldout": 6},
            "optimizer": {
                "steps": 6,
                "batch_size": 8,
                "warmup_steps": 1,
                "learning_rate": 3e-3,
                "precision": "float32",
            },
            "dev": {"every": 2},
            "checkpoint_steps": 3,
        }
    )


@pytest.fixture
def sts(tmp_path: Path) -> Path:
    """A folder with a dev and a training split and no test."""
    write_rows(tmp_path / "sts" / "dev.jsonl", [row("sts", i) for i in range(20)])
    write_rows(tmp_path / "sts" / "train.jsonl", [row("sts", i) for i in range(20, 40)])
    return tmp_path / "sts"


def with_dev(recipe: Recipe, **dev: Any) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | {"dev": dev or None})


class StopError(Exception):
    """Stands for a kill."""


def test_training_does_not_notice(recipe: Recipe, sts: Path, tmp_path: Path) -> None:
    """The same losses without a dev suite, with one, and with one in a run that was stopped and resumed."""
    measured = with_dev(recipe, every=2, tasks=[str(sts)], limit=10, demonstrations=2)

    def losses(name: str, recipe: Recipe, **options: Any) -> list[float]:
        rows: list[StepReport] = []

        def report(row: StepReport) -> None:
            rows.append(row)
            if row.step == options.get("stop"):
                raise StopError

        train(recipe, out=tmp_path / name, device="cpu", resume=options.get("resume", False), report=report)
        return [row.loss for row in rows]

    plain = losses("plain", with_dev(recipe))
    assert losses("whole", measured) == plain
    with pytest.raises(StopError):
        losses("parts", measured, stop=5)
    assert [line["step"] for line in read_dev(tmp_path / "parts")] == [0, 2, 4]
    assert losses("parts", measured, resume=True) == plain[3:]

    whole, parts = (read_dev(tmp_path / name) for name in ("whole", "parts"))
    assert [line["step"] for line in whole] == [0, 2, 4, 6]
    assert [line | {"seconds": 0} for line in parts] == [line | {"seconds": 0} for line in whole]
    assert whole[0]["scores"]["heldout"].keys() == {"metric", "without"}
    assert whole[0]["scores"]["sts"].keys() == {"metric", "without", "with_demonstrations", "shuffled"}
    assert whole[-1]["scores"]["heldout"] != whole[0]["scores"]["heldout"], "it is the trained encoder that is measured"


def test_dropout_is_off_while_measuring_and_on_again_after(encoder: Encoder) -> None:
    encoder.model.train()
    some = encoder.model.soft_tokens.eval()
    with evaluation_mode(encoder.model):
        assert not any(module.training for module in encoder.model.modules())
    assert encoder.model.training and encoder.model.backbone.training and not some.training


def test_what_is_said(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    train(recipe, out=tmp_path / "run", device="cpu", say=said.append)
    assert [line.split(" 0.")[0] for line in said if line.startswith("dev suite")] == [
        f"dev suite at step {step}: heldout" for step in (0, 2, 4, 6)
    ]


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        ({"tasks": ["{folder}"], "limit": 10, "every": 5}, "has no split 'dev'; choose one of test, train"),
        ({"tasks": ["{folder}"], "limit": 10, "every": 5, "split": "x"}, "dev.split"),
        ({"tasks": [{"folder": "{folder}", "split": "train"}], "every": 5}, "20 training rows, and limit = 300 leaves"),
        ({"tasks": [{"folder": "{folder}", "split": "test"}] * 2, "every": 5}, "two of dev.tasks are called 'sts'"),
        ({"tasks": ["{folder}/absent"], "every": 5}, "no file matches"),
    ],
)
def test_mistakes_are_known_before_the_run(recipe: Recipe, sts: Path, tmp_path: Path, dev: dict, message: str) -> None:
    (sts / "dev.jsonl").rename(sts / "test.jsonl")
    filled = json.loads(json.dumps(dev).replace("{folder}", str(sts)))
    with pytest.raises((UserError, ValueError), match=message):
        train(with_dev(recipe, **filled), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_dev_table_that_measures_nothing_is_a_mistake(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        with_dev(recipe, every=5, heldout=False)


def test_without_mteb(recipe: Recipe, sts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from epic_search.evaluation import dev

    monkeypatch.setattr(dev, "find_spec", lambda _: None)
    table = with_dev(recipe, every=5, tasks=[str(sts)]).dev
    assert table is not None
    with pytest.raises(UserError, match=r"needs mteb; install it with pip install 'epic-search\[eval\]'"):
        DevMeter(table, [])
    assert recipe.dev is not None
    DevMeter(recipe.dev, [])  # the held-out pairs need nothing


def test_without_tensorboard(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epic_search.training.tracker.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'epic-search\[tensorboard\]'"):
        train(recipe, out=tmp_path / "run", device="cpu", tracker="tensorboard")
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_number(recipe: Recipe, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    check_tracker("tensorboard")
    rows: list[StepReport] = []
    train(recipe, out=tmp_path / "run", device="cpu", tracker="tensorboard", report=rows.append)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(row.step, pytest.approx(row.loss)) for row in rows]
    found = [(event.step, event.value) for event in events.Scalars("dev/heldout/without")]
    lines = read_dev(tmp_path / "run")
    assert found == [(line["step"], pytest.approx(line["scores"]["heldout"]["without"])) for line in lines]
    assert {"train/padding", "train/memory_mb", "train/passage_cosine"} <= set(events.Tags()["scalars"])


def test_a_source_without_a_step_is_told_when_the_run_begins(recipe: Recipe, tmp_path: Path) -> None:
    write_rows(tmp_path / "few.jsonl", [{"task": "u", "query": f"a {i}", "positive": f"b {i}"} for i in range(7)])
    fields = recipe.model_dump(exclude={"dev"})
    fields["data"]["pairs"].append({"files": str(tmp_path / "few.jsonl")})
    said: list[str] = []
    train(
        Recipe.model_validate(fields),
        out=tmp_path / "run",
        device="cpu",
        say=said.append,
    )
    [warning] = [line for line in said if line.startswith("warning")]
    assert "never drawn in the 6 steps of the run: few: u; raise their weight" in warning
    assert json.loads((tmp_path / "run" / "sources.json").read_text()) == {"pairs: t": 6, "few: u": 0}
