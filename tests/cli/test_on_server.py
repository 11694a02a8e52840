"""Teaching and looking after an index on a Qdrant server from the command line: as in a folder, with --url."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import DOCUMENTS, Run

sys.path.insert(0, str(Path(__file__).parents[1] / "index"))

from stub_server import StubServer

QUERY = "the square of the hypotenuse"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    with StubServer() as stub:
        monkeypatch.setenv("EPIC_SEARCH_QDRANT_URL", stub.url)
        yield stub


@pytest.fixture
def indexed(run: Run, stub: StubServer, corpus: Path, tiny_encoder_folder: Path) -> Run:
    run("index", corpus, "--encoder", tiny_encoder_folder)
    return run


def ranking(run: Run, *options: object) -> list[str]:
    return [hit["id"] for hit in json.loads(run("query", QUERY, "--json", *options).stdout)["hits"]]


def test_teach(indexed: Run, tmp_path: Path) -> None:
    last = ranking(indexed)[-1]
    said = indexed("teach", QUERY, last)
    assert said.stdout.startswith(f"{QUERY} -> {last} (") and "pairs taught to index 'corpus': 1" in said.stderr
    assert ranking(indexed)[0] == last != ranking(indexed, "--demos", "none")[0]
    told = indexed("query", QUERY, "--explain", "--demos", "nearest").stderr
    assert f"- '{QUERY}' -> {last}: similarity 1.00, moved by 1.00" in told
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "id": "1"}\n{"query": "b", "passage": "own words"}\n')
    assert json.loads(indexed("teach", "--file", "pairs.jsonl", "--json").stdout)["total"] == 3
    assert json.loads(indexed("teach", "--file", "pairs.jsonl", "--json").stdout)["total"] == 3
    assert len(indexed("teach", "list", "--jsonl").stdout.splitlines()) == 3
    assert json.loads(indexed("teach", "suggest", "--json").stdout)[0]["id"] in {"1", "2", "3"}
    indexed("teach", "rm", "a")
    assert indexed("teach", "mode", "nearest", "--boost", "0.5").stdout == "demos\tnearest\ndemos-k\t4\nboost\t0.5\n"
    assert json.loads(indexed("indexes", "show", "corpus", "--json").stdout)["taught"] == 2
    assert "removed 2 pairs" in indexed("teach", "clear", "--yes").stderr
    assert "has no document '9'; give the id of a hit" in indexed("teach", "x", "9", code=2).stderr


def test_it_travels(indexed: Run, stub: StubServer, tmp_path: Path) -> None:
    indexed("teach", QUERY, "1", "2")
    assert "taught pairs that are there, too: 2" in indexed("indexes", "pull", "corpus").stderr
    assert json.loads(indexed("indexes", "promote", "corpus", "--as", "copy", "--json").stdout)["taught"] == 2
    assert len(json.loads(indexed("teach", "list", "--json", "--index", "copy").stdout)) == 2
    assert [info["name"] for info in json.loads(indexed("indexes", "list", "--json").stdout)] == ["copy", "corpus"]
    indexed("indexes", "delete", "copy", "--yes")
    assert len(stub.client.get_collections().collections) == 2


def test_look_after(indexed: Run, stub: StubServer) -> None:
    shown = json.loads(indexed("indexes", "show", "corpus", "--json").stdout)
    assert shown["path"] == f"collection corpus--1 at {stub.url}" and shown["size"] is None
    assert shown["encoder_loadable"] and shown["source_state"] == "not changed since it was indexed"
    sound = indexed("indexes", "verify", "corpus").stdout
    assert sound.startswith("index 'corpus': sound; 3 passages read, 3 searched for, 3 encoded again")
    assert [json.loads(line) for line in indexed("indexes", "export", "corpus").stdout.splitlines()] == DOCUMENTS
    records, _ = stub.client.scroll("corpus")
    stub.client.set_payload("corpus", {"text": "other words"}, points=[records[0].id])
    damaged = indexed("indexes", "verify", "corpus", "--encode", 0, code=1)
    assert "- 1 of 3 documents differ from what was stored (checksum)\n" in damaged.stdout
    done = indexed("indexes", "repair", "corpus", "--yes", "--source", "corpus.jsonl")
    assert "(1 new, 2 unchanged)" in done.stdout
    assert "sound" in indexed("indexes", "verify", "corpus", "--encode", 0).stdout


def test_a_home_that_is_typed_wins_over_a_url_in_the_environment(indexed: Run, stub: StubServer) -> None:
    indexed("indexes", "pull", "corpus")
    indexed("indexes", "delete", "corpus", "--yes")
    assert json.loads(indexed("indexes", "list", "--json").stdout) == []
    assert json.loads(indexed("indexes", "show", "corpus", "--home", "indexes", "--json").stdout)["size"] > 0
    both = indexed("indexes", "list", "--home", "indexes", "--url", stub.url, code=2)
    assert f"--home indexes and --url {stub.url} are two places" in both.stderr
