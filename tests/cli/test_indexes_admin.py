"""Looking after an index from the command line: show, verify, repair, export."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from tests.cli.conftest import DOCUMENTS, Run


@pytest.fixture
def indexed(run: Run, corpus: Path, tiny_encoder_folder: Path) -> Run:
    run("index", corpus, "--encoder", tiny_encoder_folder)
    return run


def test_show(indexed: Run, corpus: Path) -> None:
    shown = json.loads(indexed("indexes", "show", "corpus", "--json").stdout)
    assert (shown["documents"], shown["passages"], shown["status"]) == (3, 3, "complete")
    assert shown["encoder_loadable"] and shown["encoder_problem"] is None
    assert shown["fields"].keys() == {"module", "tags"} and shown["source"] == str(corpus.resolve())
    assert shown["source_state"] == "not changed since it was indexed"
    assert shown["size"] >= shown["store_size"] > 0 < shown["list_size"]
    os.utime(corpus, (time.time() + 60, time.time() + 60))
    indexed("teach", "read a table", "1")  # which is no reason to think that the file was read again
    assert json.loads(indexed("indexes", "show", "corpus", "--json").stdout)["taught"] == 1
    assert "source state\tchanged since it was indexed\n" in indexed("indexes", "show", "corpus").stdout
    corpus.unlink()
    assert "is not a file or folder that is there now" in indexed("indexes", "show", "corpus").stdout


def test_show_says_why_the_encoder_cannot_be_loaded(indexed: Run, tmp_path: Path) -> None:
    manifest = tmp_path / "indexes" / "corpus" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"encoder": str(tmp_path / "gone")}))
    shown = json.loads(indexed("indexes", "show", "corpus", "--json").stdout)
    assert not shown["encoder_loadable"] and "names no weights" in shown["encoder_problem"]
    manifest.write_text(json.dumps(content | {"fingerprint": "0" * 32}))
    assert "is another encoder now" in indexed("indexes", "show", "corpus").stdout


def test_verify_and_repair(indexed: Run, corpus: Path, tmp_path: Path) -> None:
    sound = indexed("indexes", "verify", "corpus", "--encode", 3).stdout
    assert sound.startswith(
        "index 'corpus': sound; 3 passages read, 3 searched for, 3 encoded again (lowest cosine 1.0"
    )
    dim = json.loads((tmp_path / "indexes" / "corpus" / "manifest.json").read_text())["dim"]
    (vectors,) = (tmp_path / "indexes" / "corpus" / "store").glob("segments/*/vector_storage/vectors/chunk_0.mmap")
    with vectors.open("r+b") as file:  # the last bit of the second vector's first number
        file.seek(4 * dim)
        (byte,) = file.read(1)
        file.seek(4 * dim)
        file.write(bytes([byte ^ 1]))
    damaged = indexed("indexes", "verify", "corpus", "--encode", 0, code=1)
    assert "- 1 of 3 documents differ from what was stored (checksum)\n" in damaged.stdout
    assert "epic-search indexes repair corpus" in damaged.stderr
    assert not json.loads(indexed("indexes", "verify", "corpus", "--encode", 0, "--json", code=1).stdout)["sound"]

    unasked = indexed("indexes", "repair", "corpus", code=1)
    assert "- would remove 1 of 3 documents" in unasked.stderr and "add --yes" in unasked.stderr
    assert "lost" not in unasked.stderr
    done = indexed("indexes", "repair", "corpus", "--yes", code=1)
    assert f"index them again with: epic-search index {corpus.resolve()} --name corpus" in done.stderr
    assert "nothing to repair" in indexed("indexes", "repair", "corpus").stdout
    assert "(1 new, 2 unchanged)" in indexed("index", corpus).stdout


def test_repair_indexes_again_what_was_lost(indexed: Run, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "indexes" / "corpus" / "documents.sqlite").write_bytes(b"garbage" * 100)
    done = indexed("indexes", "repair", "corpus", "--yes", "--source", corpus)
    assert "all documents were lost" in done.stderr and "3 documents in 3 passages (3 new)" in done.stdout
    assert "sound" in indexed("indexes", "verify", "corpus", "--encode", 0).stdout


def test_export_is_a_corpus(indexed: Run, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in indexed("indexes", "export", "corpus").stdout.splitlines()]
    assert lines == DOCUMENTS
    indexed("indexes", "export", "corpus", "-o", "out.jsonl.gz", "--vectors", "v.npy")
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as file:
        assert [json.loads(line) for line in file] == DOCUMENTS
    assert "(3 unchanged)" in indexed("index", "out.jsonl.gz", "--name", "corpus").stdout
    assert "add --overwrite" in indexed("indexes", "export", "corpus", "-o", "out.jsonl.gz", code=2).stderr
    assert "cannot write" in indexed("indexes", "export", "corpus", "-o", "no/out.jsonl", code=2).stderr
    assert "no index 'x'" in indexed("indexes", "export", "x", "-o", "x.jsonl", code=2).stderr
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "x.jsonl").exists()
