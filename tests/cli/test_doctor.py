"""The doctor finds what is wrong, and completion what there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def findings(run: Run, *arguments: object, code: int = 0) -> dict[str, dict[str, str]]:
    answer = json.loads(run("doctor", "--json", *arguments, code=code).stdout)
    assert answer["ok"] == (code == 0)
    return {finding["name"]: finding for finding in answer["findings"]}


def test_a_machine_that_is_in_order(run: Run, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    found = findings(run, "--encoder", tiny_encoder_folder, "--device", "cpu")
    assert {"python", "torch", "device", "dtype", "attention", "qdrant engine", "home of indexes", "cache"} <= set(
        found
    )
    assert found["dtype"]["value"] in {"float32", "bfloat16"} and found["dtype"]["reason"]
    assert found["attention"]["value"] == "packed"
    assert found["OMP_WAIT_POLICY"]["value"] == "passive"
    assert all(finding["hint"] for finding in found.values() if finding["state"] != "ok")


def test_int8_where_it_cannot_be_had(run: Run, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIC_SEARCH_COMPILE", "off")
    asked = ("--encoder", tiny_encoder_folder, "--device", "cpu", "--dtype", "int8")
    found = findings(run, *asked, code=1)
    assert found["encoder"]["reason"] == (
        "dtype 'int8' needs a CPU with AMX and products compiled for it, and there are none here: "
        "EPIC_SEARCH_COMPILE=off; use auto"
    )


def test_problems_come_with_a_hint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = findings(run, "--encoder", "no-such-encoder", "--home", tmp_path / "file" / "home", code=1)
    problems = {name for name, finding in found.items() if finding["state"] == "problem"}
    assert problems == {"home of indexes", "encoder"}
    assert "names no weights" in found["encoder"]["reason"]
    shown = run("doctor", "--encoder", "no-such-encoder", code=1)
    assert "encoder\tproblem: no-such-encoder" in shown.stdout and shown.stderr.endswith("1 problem\n")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("epic-search query x --index ", ["corpus", "other"]),
        ("epic-search query x -i co", ["corpus"]),
        ("epic-search indexes delete o", ["other"]),
        ("epic-search query x --home nowhere -i ", []),
        ("epic-search models show epic", ["epic-mini"]),
        ("epic-search index x.jsonl --encoder epic", ["epic-mini"]),
    ],
)
def test_completion(line: str, offered: list[str], tmp_path: Path) -> None:
    """Of the home folder that the configuration file names, and without torch."""
    for name in ("corpus", "other"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "manifest.json").write_text('{"fingerprint": "x"}')
    (tmp_path / "epic-search.toml").write_text('home = "home"\n')
    words = line.split(" ")
    code = (
        "import sys\nfrom epic_search.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules and 'qdrant_edge' not in sys.modules"
    )
    environment = os.environ | {
        "_EPIC_SEARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment.pop("EPIC_SEARCH_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == offered and done.stderr == ""
