"""The demo, with the tiny encoder and a part of the standard library's documentation."""

import json
from pathlib import Path

import pytest

from epic_search import stdlib
from epic_search.cli import demo
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def everything() -> list[dict[str, str]]:
    """All documents of the installed standard library."""
    return list(stdlib.documents())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, everything: list[dict[str, str]], tiny_encoder_folder: Path) -> None:
    """The tiny encoder in place of the default one, and few documents besides the one that is taught."""
    few = [document for document in everything if document["_id"] != demo.RIGHT][:41]
    few += [document for document in everything if document["_id"] == demo.RIGHT]
    monkeypatch.setattr(stdlib, "documents", lambda: iter(few))
    monkeypatch.setattr("epic_search.encoder.checkpoint.DEFAULT_MODEL", str(tiny_encoder_folder))


def test_demo_then_query(run: Run) -> None:
    printed = run("demo").stdout
    assert "indexing 42 of the 42 documented things" in printed
    for question in demo.QUESTIONS:
        assert f"? {question}\n" in printed
    assert printed.count(f"? {demo.RELATED}\n") == 2
    assert run("teach", "list").stdout == "", "the index is left as it was"
    assert 'epic-search query "your own question"' in printed
    found = json.loads(run("query", "a question", "--facet", "kind", "--facet", "module", "--json").stdout)
    assert found["index"] == demo.INDEX
    assert all(found["facets"].values()), "there is something to narrow a search by"


def test_demo_again_encodes_nothing(run: Run) -> None:
    run("demo")
    assert "(42 unchanged)" in run("demo").stdout


def test_json(run: Run) -> None:
    answer = json.loads(run("demo", "--all", "--json").stdout)
    assert (answer["index"], answer["documents"]) == (demo.INDEX, 42)
    assert [question["query"] for question in answer["questions"]] == list(demo.QUESTIONS)
    taught = answer["taught"]
    assert (taught["query"], taught["document"], taught["related"]) == (demo.TAUGHT, demo.RIGHT, demo.RELATED)
    assert len(taught["with"]) == len(taught["without"]) == demo.HITS


def test_a_pair_of_the_users_own_stays(run: Run, everything: list[dict[str, str]]) -> None:
    run("demo")
    run("teach", demo.TAUGHT, demo.RIGHT)
    run("teach", demo.TAUGHT, everything[0]["_id"])
    mine = run("teach", "list").stdout
    run("demo")
    assert run("teach", "list").stdout == mine


def test_a_slow_machine_indexes_less(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SECONDS", 0.0)
    monkeypatch.setattr(demo, "SAMPLE", 10)
    assert "indexing 10 of the 42 documented things" in run("demo").stdout
    assert "indexing 10 of the 42" in run("demo").stdout
    assert "indexing 42 of the 42" in run("demo", "--all").stdout


def test_an_index_of_another_encoder_is_made_anew(run: Run) -> None:
    run("demo")
    manifest = Path("indexes") / demo.INDEX / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"fingerprint": "0" * 32}))
    result = run("demo")
    assert "making it anew" in result.stderr
    assert "(42 new)" in result.stdout


def test_a_home_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "choose a folder that you may write to" in run("demo", "--home", tmp_path / "file" / "x", code=2).stderr


def test_the_real_documentation_holds_what_is_taught(everything: list[dict[str, str]]) -> None:
    assert demo.RIGHT in {document["_id"] for document in everything}
