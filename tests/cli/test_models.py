"""The registry of models, as a person and as a script see it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

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


def test_export(run: Run, tmp_path: Path, tiny_encoder_folder: Path) -> None:
    arguments = ("models", "export", tiny_encoder_folder, "--out", "made")
    made = json.loads(run(*arguments, "--format", "merged", "--json").stdout)
    assert made["format"] == "merged" and Path(made["path"]) == tmp_path / "made"
    assert made["fingerprint"] != made["source"] and made["size"] > 0
    assert (tmp_path / "made" / "README.md").is_file()
    assert "replace it with --overwrite" in run(*arguments, "--format", "adapter", code=2).stderr
    result = run(*arguments, "--format", "adapter", "--overwrite")
    assert result.stdout.startswith("exported tiny (") and not result.stderr
    assert "an index that is to use it" in run(*arguments, "--format", "merged", "--overwrite").stderr
    assert "names no weights" in run("models", "export", "epic-maxi", "--out", "x", "-f", "merged", code=2).stderr
    run(*arguments, "--format", "onnx", code=2)


def test_push_without_a_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, errors

    def refuses(*_: object, **__: object) -> None:
        raise errors.LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(HfApi, "create_repo", refuses)
    said = run("models", "push", "epic-mini", "org/name", "--private", code=2).stderr
    assert said.startswith("error: there is no token for the hub to push org/name; run hf auth login")
    assert "give it as ORG/NAME" in run("models", "push", "epic-mini", "name", code=2).stderr


def test_push(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, **__: SimpleNamespace(commit_url="https://hub/1"))
    assert run("models", "push", "epic-mini", "org/name").stdout == "https://hub/1\n"
    shown = json.loads(run("models", "push", "epic-mini", "org/name", "--json").stdout)
    assert shown == {"repository": "org/name", "url": "https://hub/1"}
