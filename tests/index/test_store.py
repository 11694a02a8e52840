"""The contract of a vector store, and the engine's faults that the embedded one keeps from the rest."""

import os
import shutil
import signal
import uuid
from pathlib import Path

import numpy as np
import pytest

from epic_search.errors import UserError
from epic_search.index import Searcher, disk, index_corpus
from epic_search.index.store.edge import UPSERT_POINTS, EdgeStore, StoreDamaged
from epic_search.index.store.protocol import Point, first_bad_vector

DIM = 16


def vectors(count: int, seed: int = 0) -> np.ndarray:
    vectors_PE = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return vectors_PE / np.linalg.norm(vectors_PE, axis=1, keepdims=True)


def points(count: int) -> list[Point]:
    return [Point(str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))), {"n": n}) for n in range(count)]


@pytest.fixture
def store(tmp_path):
    opened = EdgeStore(tmp_path / "store", dim=DIM, create=True)
    yield opened
    opened.close()


class TestContract:
    """What holds for every VectorStore."""

    def test_search_is_exact_on_few_points(self, store):
        vectors_PE = vectors(500)
        store.upsert(points(500), vectors_PE)
        found = store.search(vectors_PE[:20], limit=5)
        expected = np.argsort(-(vectors_PE[:20] @ vectors_PE.T), axis=1)[:, :5]
        assert [[match.payload["n"] for match in matches] for matches in found] == expected.tolist()
        assert found[0][0].score == pytest.approx(1.0, abs=1e-5)

    def test_upsert_replaces(self, store):
        store.upsert(points(10), vectors(10))
        store.upsert([Point(points(10)[3].id, {"n": "new"})], vectors(1, seed=1))
        assert store.count() == 10
        assert store.search(vectors(1, seed=1), limit=1)[0][0].payload == {"n": "new"}

    def test_delete(self, store):
        store.upsert(points(10), vectors(10))
        store.delete([point.id for point in points(12)[8:]])
        assert store.count() == 8

    def test_many_points_in_one_call(self, store):
        count = 3 * UPSERT_POINTS + 1
        store.upsert(points(count), vectors(count))
        assert store.count() == count

    def test_reopen(self, store, tmp_path):
        store.upsert(points(10), vectors(10))
        store.flush()
        store.close()
        again = EdgeStore(tmp_path / "store", dim=DIM, create=False)
        assert again.count() == 10
        assert again.search(vectors(10), limit=1)[7][0].payload == {"n": 7}
        again.close()

    def test_payload_survives_as_it_is(self, store):
        payload = {"a": [1, 2.5, None, True, {"b": "日本"}], "": -(2**63), "u": 2**64 - 1, "deep": [[[[]]]]}
        store.upsert([Point(points(1)[0].id, payload)], vectors(1))
        assert store.search(vectors(1), limit=1)[0][0].payload == payload

    def test_optimize_keeps_everything(self, store):
        store.upsert(points(2000), vectors(2000))
        store.delete([point.id for point in points(1500)])
        store.optimize()
        assert store.count() == 500


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_unsound_vectors_are_found(value):
    vectors_PE = vectors(5)
    assert first_bad_vector(vectors_PE) is None
    vectors_PE[3] *= value
    assert first_bad_vector(vectors_PE) == 3


def test_unsound_vectors_do_not_reach_the_engine(store):
    with pytest.raises(AssertionError):
        store.upsert(points(1), vectors(1) * np.nan)
    with pytest.raises(AssertionError):
        store.upsert(points(1), vectors(1)[:, :4])
    with pytest.raises(AssertionError):
        store.search(vectors(1) * 2, limit=1)
    assert store.count() == 0


def test_the_engine_s_refusal_is_a_bug_that_names_the_request(store):
    with pytest.raises(RuntimeError, match=r"refused 'upsert'.*UUID"):
        store.upsert([Point("no-uuid", {})], vectors(1))
    store.upsert(points(1), vectors(1))  # and the store goes on
    assert store.count() == 1


@pytest.mark.parametrize(
    ("death", "words"), [(signal.SIGBUS, "is full"), (signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")]
)
def test_death_of_the_engine_is_one_sentence(store, tmp_path, death, words):
    store.upsert(points(10), vectors(10))
    store.flush()
    os.kill(store._process.pid, death)
    with pytest.raises(UserError, match=words):
        store.count()
    store.close()
    again = EdgeStore(tmp_path / "store", dim=DIM, create=False)
    assert again.count() == 10
    again.close()


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(StoreDamaged):
        EdgeStore(tmp_path / "nothing", dim=DIM, create=False)


def test_nearly_full_disk_stops_before_writing(corpus, encoder, home, monkeypatch):
    index_corpus(corpus(5), name="test", encoder=encoder, home=home)
    monkeypatch.setattr(disk, "RESERVE_BYTES", 2**60)
    with pytest.raises(UserError, match="MiB of free disk space"):
        index_corpus(corpus(10), name="test", encoder=encoder, home=home)
    monkeypatch.undo()
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert len(searcher.search(["river"], k=20)[0]) == 5


def cut_in_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


DAMAGES = {
    "id tracker cut": ("store/segments/*/mutable_id_tracker.mappings", cut_in_half),
    "vectors emptied": ("store/segments/*/vector_storage/vectors/status.dat", cut_in_half),
    "log garbled": ("store/wal/open-*", lambda path: path.write_bytes(b"garbage" * 1000)),
    "segment gone": ("store/segments/*", shutil.rmtree),
    "store gone": ("store", shutil.rmtree),
    "list garbled": ("documents.sqlite", lambda path: path.write_bytes(b"garbage" * 1000)),
    "list emptied": ("documents.sqlite", lambda path: path.write_bytes(b"")),
    "list gone": ("documents.sqlite", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_says_what_to_do(corpus, encoder, home, damage):
    path = corpus(300)
    index_corpus(path, name="test", encoder=encoder, home=home)
    pattern, harm = DAMAGES[damage]
    found = list((home / "test").glob(pattern))
    assert found
    for file in found:
        harm(file)
    for attempt in (
        lambda: Searcher.open("test", home=home, encoder=encoder),
        lambda: index_corpus(path, name="test", encoder=encoder, home=home),
    ):
        with pytest.raises(UserError, match=r"damaged.*epic-search indexes delete test"):
            attempt()
