"""How the tests of the command line run it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from epic_search.cli.main import app

DOCUMENTS = [
    {
        "_id": "1",
        "title": "csv.DictReader",
        "text": "Read rows as dictionaries with named columns.",
        "module": "csv",
    },
    {"_id": "2", "title": "os.remove", "text": "Remove a file.", "module": "os"},
    {"_id": "3", "title": "", "text": "Return the square root of a number.", "tags": ["math", 1]},
]
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `epic-search ARGUMENTS` in a fresh folder that is also the parent of its home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EPIC_SEARCH_HOME", raising=False)

    def call(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"exit code {result.exit_code}:\n{result.output}"
        return result

    return call


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of three documents."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    return path
