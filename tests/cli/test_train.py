"""`epic-search train` from a recipe file to an encoder folder."""

import json
from pathlib import Path

import pytest

from epic_search.cli.train import RECIPES
from tests.cli.conftest import Run

RECIPE = """
name = "tiny-run"
checkpoint_steps = 1

[encoder]
name = "tiny-run"
backbone = "{backbone}"
max_length = 128

[encoder.lora]
rank = 2

[data]
heldout = 8
max_length = 32

[[data.pairs]]
files = "{pairs}"

[optimizer]
steps = 2
batch_size = 4
warmup_steps = 1
precision = "float32"
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_backbone_folder: Path) -> Path:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"task": "t", "query": f"query {i}", "positive": f"answer {i}"} for i in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(backbone=tiny_backbone_folder, pairs=pairs))
    return path


def test_train_then_index_with_the_result(run: Run, recipe: Path, corpus: Path) -> None:
    result = json.loads(run("train", recipe, "--json").stdout)
    assert set(result) == {"recipe", "encoder", "steps", "seconds", "before", "after"}
    assert result["encoder"] == "runs/tiny-run/encoder"
    assert result["before"]["pairs"] == result["after"]["pairs"] == 8
    run("index", corpus, "--encoder", result["encoder"])
    assert len(run("query", "read a csv file").stdout.splitlines()) == 3


def test_what_is_printed(run: Run, recipe: Path, tmp_path: Path) -> None:
    result = run("train", recipe, "--out", tmp_path / "out")
    assert result.stdout.startswith("trained 2 steps in ")
    assert "on 8 pairs that were held out:\nbefore\t0." in result.stdout
    assert "step 2/2 loss " in result.stderr
    again = run("train", recipe, "--out", tmp_path / "out", code=2)
    assert "--resume" in again.stderr
    resumed = run("train", recipe, "--out", tmp_path / "out", "--resume")
    assert resumed.stdout.startswith("trained 2 steps in ")


def test_no_such_recipe(run: Run) -> None:
    said = run("train", "absent.toml", code=2).stderr
    assert "there is no recipe 'absent.toml'; give a TOML file, or one of " in said
    assert "quickstart" in said


def test_wrong_recipe(run: Run, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "stepz = 2")
    assert "optimizer.stepz" in run("train", recipe, code=2).stderr


def test_packaged_recipes_are_found() -> None:
    assert {"quickstart", "epic-mini"} <= {file.stem for file in RECIPES.glob("*.toml")}
