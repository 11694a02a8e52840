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


def test_the_verb_may_be_named(run: Run, recipe: Path) -> None:
    assert run("train", "run", recipe).stdout.startswith("trained 2 steps in ")


def test_status_of_a_finished_run(run: Run, recipe: Path) -> None:
    run("train", recipe)
    result = run("train", "status", "runs/tiny-run")
    lines = result.stdout.splitlines()
    assert {"run\ttiny-run", "state\tfinished", "step\t2 of 2", "checkpoint\tstep 2"} <= set(lines)
    assert "source\tsteps\tshare" in lines and "pairs: t\t2\t100.0%" in lines
    quality = next(line.split("\t") for line in lines if line.startswith("nDCG@10"))
    assert all(quality[1:]), "known before and after"
    found = json.loads(run("train", "status", "runs/tiny-run", "--json").stdout)
    assert (found["state"], found["step"], found["drawn"]) == ("finished", 2, {"pairs: t": 2})
    assert found["before"]["pairs"] == found["after"]["pairs"] == 8
    assert found["memory_mb"] > 50 and found["padding"] == 0 and found["dev"] == []
    assert run("train", "status", "runs/tiny-run", "--watch").stdout == result.stdout, "a finished run is shown once"


def test_a_dev_suite_and_warnings(run: Run, recipe: Path, tmp_path: Path) -> None:
    """What is said during the run is what the status shows after it."""
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"query": "alone", "positive": "in its file"}) + "\n")
    more = f'[[data.pairs]]\nfiles = "{few}"\n[dev]\nevery = 1\n'
    recipe.write_text(recipe.read_text() + more)
    said = run("train", recipe).stderr.splitlines()
    [warning] = [line for line in said if line.startswith("warning")]
    assert "never drawn in the 2 steps of the run: few;" in warning
    assert [line.split(": ")[0] for line in said if "dev" in line] == [f"dev suite at step {n}" for n in range(3)]
    lines = run("train", "status", "runs/tiny-run").stdout.splitlines()
    assert warning in lines and "few\t0\t0.0%" in lines
    header = "dev suite, step 2\tstart\tnow\twith demonstrations\tshuffled\tgain"
    measured = lines[lines.index(header) + 1].split("\t")
    assert measured[0] == "heldout (ndcg_at_10)" and all(measured[1:3]) and not any(measured[3:])


def test_an_unknown_tracker(run: Run, recipe: Path) -> None:
    assert "tensorboard" in run("train", recipe, "--tracker", "abacus", code=2).stderr


def test_status_draws(run: Run, recipe: Path) -> None:
    pytest.importorskip("matplotlib")
    run("train", recipe)
    assert "curves.svg and " in run("train", "status", "runs/tiny-run", "--plot").stderr
    assert Path("runs/tiny-run/curves.svg").is_file() and Path("runs/tiny-run/curves.html").is_file()


def test_watching_ends_with_the_run(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train", recipe)
    encoder, hidden = Path("runs/tiny-run/encoder"), Path("hidden")
    encoder.rename(hidden)
    monkeypatch.setattr("epic_search.cli.train_status.time.sleep", lambda _: hidden.rename(encoder))
    shown = run("train", "status", "runs/tiny-run", "--watch").stdout
    assert [line for line in shown.splitlines() if line.startswith("state")] == ["state\trunning", "state\tfinished"]


def test_ctrl_c_ends_watching(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    run("train", recipe)
    Path("runs/tiny-run/encoder").rename("hidden")
    monkeypatch.setattr("epic_search.cli.train_status.time.sleep", interrupt)
    assert "state\trunning" in run("train", "status", "runs/tiny-run", "--watch").stdout


def test_status_of_nothing(run: Run) -> None:
    assert "holds no training run" in run("train", "status", "absent", code=2).stderr
    assert "contradict" in run("train", "status", "absent", "--watch", "--json", code=2).stderr


def test_mine_then_train_with_the_result(run: Run, recipe: Path, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    options = ("--encoder", tiny_encoder_folder, "--negatives", 2, "--depth", 20)
    result = run("train", "mine", tmp_path / "pairs.jsonl", "--out", "mined.jsonl.gz", *options)
    header, line = (line.split("\t") for line in result.stdout.splitlines())
    mined = dict(zip(header, line, strict=True))
    assert (mined["task"], mined["pairs"], mined["passages"]) == ("t", "40", "40")
    assert int(mined["all"]) + int(mined["some"]) + int(mined["none"]) == 40
    assert "wrote 40 pairs with " in result.stderr
    found = json.loads(run("train", "mine", "pairs.jsonl", "--out", "again.jsonl", "--json", *options).stdout)
    assert found["rules"] == {"negatives": 2, "depth": 20, "margin": 0.95, "skip": 0, "replace": False}
    [task] = found["tasks"]
    assert sum(task["counts"].values()) == 40 and str(task["negatives"]) == mined["negatives"]
    recipe.write_text(recipe.read_text().replace("pairs.jsonl", "mined.jsonl.gz"))
    assert run("train", recipe).stdout.startswith("trained 2 steps in ")


def test_mining_mistakes(run: Run, recipe: Path) -> None:
    def said(*arguments: object) -> str:
        return run("train", "mine", *arguments, code=2).stderr

    assert "no file matches" in said("absent.jsonl", "--out", "mined.jsonl")
    assert "one of the files" in said("pairs.jsonl", "--out", "pairs.jsonl")
    assert "raise --depth to 7" in said("pairs.jsonl", "--out", "mined.jsonl", "--depth", 3)
    assert "it has no modules.json" in said(
        "pairs.jsonl", "--out", "mined.jsonl", "--encoder", _backbone(recipe), "--teacher", f"st:{_backbone(recipe)}"
    )
    assert not Path("mined.jsonl").exists()


def _backbone(recipe: Path) -> str:
    return next(line for line in recipe.read_text().splitlines() if line.startswith("backbone")).split('"')[1]


def test_explaining_a_key(run: Run) -> None:
    header, line = (line.split("\t") for line in run("train", "--explain", "objective.temperature").stdout.splitlines())
    found = dict(zip(header, line, strict=True))
    assert (found["key"], found["type"], found["default"]) == ("objective.temperature", "number", "0.02")
    every = run("train", "--explain", "all").stdout.splitlines()
    assert {"optimizer.steps", "encoder.lora.rank", "data.labels.weight"} <= {row.split("\t")[0] for row in every}
    [key] = json.loads(run("train", "--explain", "optimizer.steps", "--json").stdout)
    assert (key["required"], key["default"], key["allowed"]) == (True, None, "at least 1")
    said = run("train", "--explain", "objective.temprature", code=2).stderr
    assert "has no key 'objective.temprature'; the nearest are objective.temperature" in said
