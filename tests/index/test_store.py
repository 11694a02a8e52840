"""The engine's faults that the embedded store keeps from the rest."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from test_store_contract import DIM, points, vectors

from epic_search.errors import UserError
from epic_search.index import Searcher, disk, index_corpus
from epic_search.index.store import edge
from epic_search.index.store.edge import EdgeStore, StoreDamaged
from epic_search.index.store.protocol import Point, Schema, StoreQuery


@pytest.fixture
def store(tmp_path):
    opened = EdgeStore(tmp_path / "store", schema=Schema({"": DIM}), create=True)
    yield opened
    opened.close()


def test_the_engine_s_refusal_is_a_bug_that_names_the_request(store):
    with pytest.raises(RuntimeError, match=r"refused 'upsert'.*UUID"):
        store.upsert([Point("no-uuid", {})], {"": vectors(1)})
    store.upsert(points(1), {"": vectors(1)})  # and the store goes on
    assert store.count() == 1


def test_the_engine_dies_where_the_disk_is_full(store, monkeypatch):
    """A page of a mapped file for which there is no room is the same signal as one of a file that was cut short."""
    monkeypatch.setattr(edge, "RESERVE_BYTES", 2**60)
    os.kill(store._process.pid, signal.SIGBUS)
    with pytest.raises(UserError, match="is full; what was stored is kept"):
        store.count()


@pytest.mark.parametrize(
    ("death", "words"),
    [(signal.SIGBUS, "a file was cut short.*indexes verify"), (signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")],
)
def test_death_of_the_engine_is_one_sentence(store, tmp_path, death, words):
    store.upsert(points(10), {"": vectors(10)})
    store.flush()
    os.kill(store._process.pid, death)
    with pytest.raises(UserError, match=words):
        store.count()
    store.close()
    again = EdgeStore(tmp_path / "store", schema=Schema({"": DIM}), create=False)
    assert again.count() == 10
    again.close()


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(StoreDamaged):
        EdgeStore(tmp_path / "nothing", schema=Schema({"": DIM}), create=False)


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


def test_a_store_of_one_unnamed_vector_opens(tmp_path):
    """As the indexes that were made before there were names."""
    import qdrant_edge

    (tmp_path / "store").mkdir()
    parameters = qdrant_edge.EdgeVectorParams(size=DIM, distance=qdrant_edge.Distance.Dot)
    shard = qdrant_edge.EdgeShard.create(str(tmp_path / "store"), qdrant_edge.EdgeConfig(vectors=parameters))
    old = [
        qdrant_edge.Point(point.id, vector_E, point.payload)
        for point, vector_E in zip(points(20), vectors(20), strict=True)
    ]
    shard.update(qdrant_edge.UpdateOperation.upsert_points(old))
    shard.close()
    store = EdgeStore(tmp_path / "store", schema=Schema({"": DIM}), create=False)
    store.upsert(points(21)[20:], {"": vectors(21)[20:]})
    found = store.search([StoreQuery(vector_E) for vector_E in vectors(21)], limit=1)
    assert [match.payload["n"] for [match] in found] == list(range(21))
    np.testing.assert_array_equal(store.vectors([points(4)[3].id])[points(4)[3].id], vectors(20)[3])
    assert [list(stored.dense) for stored in store.scroll(limit=30).points] == [[""]] * 21
    store.close()
