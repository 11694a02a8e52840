"""Killed, interrupted and competing runs: nothing stored is lost, and a repeated run brings the rest."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from index_helpers import stored
from stand_in import StandIn

from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus, indexer, list_indexes
from epic_search.index.lock import Lock

SCRIPT = Path(__file__).with_name("stand_in.py")
ROOT = Path(__file__).parents[2]


def start(home: Path, corpus: Path, *, delay: float, name: str = "test") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(home), name, str(corpus), str(delay)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        process_group=0,
    )
    assert process.stdout is not None and process.stdout.readline() == "start\n"
    return process


def until(process: subprocess.Popen[str], documents: int) -> None:
    """Wait until the run says that it has come to so many documents."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line.split()[1]) >= documents:
            return
    raise AssertionError(process.communicate()[1])


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("documents", [0, 600, 1500])
@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_killed_run_resumes(corpus, encoder, home, running, documents, pause):
    path = corpus(2000)
    index_corpus(path, name="whole", encoder=StandIn(), home=home)
    process = start(home, path, delay=0.1)
    running.append(process)
    if documents:
        until(process, documents)
    time.sleep(pause)
    process.kill()
    process.wait()

    report = index_corpus(path, name="test", encoder=encoder, home=home)
    assert report.documents == 2000
    chunk = indexer.CHUNK_PASSAGES + indexer.GROUP_DOCUMENTS
    assert report.encoded <= 2000 - documents + chunk
    assert stored(home, encoder) == stored(home, encoder, "whole")


def test_killed_while_replacing_keeps_old_or_new(corpus, encoder, home, running):
    index_corpus(corpus(2000), name="test", encoder=encoder, home=home)
    path = corpus(2000, changed=frozenset(range(2000)))
    process = start(home, path, delay=0.1)
    running.append(process)
    until(process, 1000)
    process.kill()
    process.wait()
    assert len(stored(home, encoder)) == 2000
    index_corpus(path, name="test", encoder=encoder, home=home)
    texts = [text for _, text in stored(home, encoder).values()]
    assert len(texts) == 2000 and all(text.endswith("rewritten") for text in texts)


def test_ctrl_c_keeps_what_was_stored(corpus, encoder, home, running):
    path = corpus(3000)
    process = start(home, path, delay=0.3)
    running.append(process)
    until(process, 1000)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGINT
    assert errors.strip().endswith("KeyboardInterrupt")
    (info,) = list_indexes(home)
    assert info.status == "indexing" and 512 <= info.documents < 3000
    assert len(stored(home, encoder)) == info.documents
    report = index_corpus(path, name="test", encoder=encoder, home=home)
    assert report.documents == 3000 and report.unchanged == info.documents


def test_ctrl_c_while_the_engine_works_ends_it(corpus, encoder, home, monkeypatch):
    from epic_search.index.store.edge import EdgeStore

    def interrupted(self, *args, **options):
        self._in_step = False  # as when the signal comes between a request and its answer
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EdgeStore, "optimize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index_corpus(corpus(600), name="test", encoder=encoder, home=home)
    assert len(stored(home, encoder)) == 600


def test_second_process_is_told_who_has_the_index(corpus, encoder, home, running, monkeypatch):
    path = corpus(3000)
    process = start(home, path, delay=0.5)
    running.append(process)
    until(process, 1)
    with pytest.raises(UserError, match=f"'test' is in use by process {process.pid}"):
        index_corpus(path, name="test", encoder=encoder, home=home)
    monkeypatch.setattr("epic_search.index.searcher.LOCK_WAIT_SECONDS", 0.1)
    with pytest.raises(UserError, match=f"'test' is in use by process {process.pid}"):
        Searcher.open("test", home=home, encoder=encoder)
    assert process.poll() is None
    index_corpus(corpus(3, name="other.jsonl"), name="other", encoder=encoder, home=home)  # others are free


def test_search_waits_for_a_short_holder(corpus, encoder, home):
    import threading

    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    lock = Lock(home / "test")
    threading.Timer(0.3, lock.close).start()
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert len(searcher.search(["river"])[0]) == 3


def test_lock_outlives_a_killed_parent_as_long_as_its_child(corpus, encoder, home, running):
    """A store that is still writing for a dead parent keeps others out, and they wait for it."""
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    code = (
        "import sys, subprocess; from pathlib import Path; from epic_search.index.lock import Lock;"
        "lock = Lock(Path(sys.argv[1]));"
        "subprocess.Popen(['sleep', '1'], pass_fds=[lock.fd], stdout=subprocess.DEVNULL)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(home / "test")], check=True, env=env)
    begin = time.monotonic()
    assert index_corpus(corpus(3), name="test", encoder=encoder, home=home).unchanged == 3
    assert 0.3 < time.monotonic() - begin < 10


def test_leftovers_of_a_run_killed_at_the_very_start(corpus, encoder, home):
    (home / "test" / "store" / "segments").mkdir(parents=True)
    for name in ("lock", "manifest.json.tmp"):
        (home / "test" / name).touch()
    with pytest.raises(UserError, match="not an index"):
        index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    (home / "test" / "store" / "segments").rmdir()
    (home / "test" / "store").rmdir()
    assert index_corpus(corpus(3), name="test", encoder=encoder, home=home).added == 3


def test_store_half_made(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    (home / "new" / "store" / "segments").mkdir(parents=True)
    manifest = (home / "test" / "manifest.json").read_text()
    (home / "new" / "manifest.json").write_text(
        manifest.replace('"documents": 3', '"documents": 0').replace('"passages": 3', '"passages": 0')
    )
    assert index_corpus(corpus(3), name="new", encoder=encoder, home=home).added == 3
