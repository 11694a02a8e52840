"""The registry of models, as a person and as a script see it."""

import json
from pathlib import Path

from epic_search.encoder.weights import KNOWN
from tests.cli.conftest import Run


def test_list(run: Run) -> None:
    models = json.loads(run("models", "list", "--json").stdout)
    by_name = {model["name"]: model for model in models}
    assert set(KNOWN) <= set(by_name)
    assert all(model["kind"] in {"encoder", "weights"} for model in models)
    lines = run("models", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [model["name"] for model in models]


def test_the_default_encoder_is_there(run: Run) -> None:
    shown = json.loads(run("models", "show", "epic-mini", "--json").stdout)
    assert shown["kind"] == "encoder" and shown["installed"]
    assert shown["backbone"] in KNOWN
    assert Path(run("models", "path", "epic-mini").stdout.strip()) == Path(shown["path"])
    assert "backbone\t" in run("models", "show", "epic-mini").stdout


def test_weights(run: Run) -> None:
    shown = json.loads(run("models", "show", "all-minilm-l6-v2", "--json").stdout)
    assert shown["licence"] == "Apache-2.0" and len(shown["sha256"]) == 64
    if shown["installed"]:
        folder = json.loads(run("models", "path", "all-minilm-l6-v2", "--json").stdout)["path"]
        assert (Path(folder) / "config.json").is_file()


def test_no_such_model(run: Run) -> None:
    for verb in ("show", "path"):
        said = run("models", verb, "epic-maxi", code=2).stderr
        assert "no model is named 'epic-maxi'; the names are" in said and "all-minilm-l6-v2" in said
