"""Damage is found, whatever file it is in; what can be put right is, and what was lost comes back by indexing again."""

import math
import shutil
import sqlite3
import struct
import uuid
from pathlib import Path

import numpy as np
import pytest
from index_helpers import stored

from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.checksum import checksum
from epic_search.index.contents import Contents
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.repair import repair_index
from epic_search.index.store.edge import EdgeStore
from epic_search.index.store.protocol import Point, Schema
from epic_search.index.verify import verify_index

COUNT = 300


def yes(step: str) -> bool:
    return True


@pytest.fixture
def indexed(corpus, encoder, home) -> Path:
    """The folder of an index of COUNT documents."""
    index_corpus(corpus(COUNT), name="test", encoder=encoder, home=home)
    return home / "test"


def verify(home, encoder=None, **options):
    return verify_index("test", home=home, load=lambda manifest: encoder, encode=8 if encoder else 0, **options)


def opened(folder: Path, lock: Lock) -> Contents:
    return Contents(folder, Manifest.load(folder), lock=lock, complete=False)


def flip(path: Path, old: bytes) -> None:
    """Change one bit in the middle of the place where a file holds these bytes."""
    content = bytearray(path.read_bytes())
    place = content.find(old)
    assert place >= 0
    content[place + len(old) // 2] ^= 1
    path.write_bytes(content)


def files_holding(folder: Path, content: bytes) -> list[Path]:
    return [
        path for path in (folder / "store" / "segments").rglob("*") if path.is_file() and content in path.read_bytes()
    ]


def test_a_sound_index(indexed, encoder, home):
    seen = []
    found = verify(home, encoder, progress=lambda read, total: seen.append((read, total)))
    assert found.is_sound, found.faults
    assert (found.documents, found.passages, found.read, found.encoded) == (COUNT, COUNT, COUNT, 8)
    assert found.lowest_cosine == pytest.approx(1.0, abs=1e-5) and found.without_checksum == 0
    assert seen[-1] == (COUNT, COUNT)
    report = repair_index("test", home=home, agree=yes)
    assert (report.done, report.declined, report.lost) == ([], [], [])


def test_another_encoder_is_a_fault(indexed, home):
    from stand_in import StandIn

    found = verify(home, StandIn("other"))
    assert len(found.faults) == 1 and "was made by encoder 'stand-in'" in found.faults[0].what


def test_vectors_that_the_encoder_does_not_make(indexed, encoder, home):
    changed = type(encoder)()
    changed._vector = lambda text: np.roll(encoder._vector(text), 1)
    found = verify(home, changed)
    assert "8 of 8 passages have another vector when encoded again" in found.faults[0].what


def test_vectors_in_another_precision_are_no_fault(indexed, encoder, home):
    rounded = type(encoder)()
    rounded._vector = lambda text: near(encoder._vector(text), cosine=0.995)
    found = verify(home, rounded)
    assert not found.faults and found.lowest_cosine == pytest.approx(0.995, abs=1e-4)


def near(vector_E: np.ndarray, *, cosine: float) -> np.ndarray:
    """A unit vector at this cosine to another."""
    other_E = np.roll(vector_E, 1)
    other_E -= (other_E @ vector_E) * vector_E
    return cosine * vector_E + np.sqrt(1 - cosine**2) * other_E / np.linalg.norm(other_E)


@pytest.mark.parametrize("what", ["vector", "text"])
def test_one_bit(what, corpus, encoder, indexed, home):
    """The engine serves a changed vector or text without a word."""
    text = "word7 "
    old = encoder.encode_passages([f"Title 7\n{stored_text(home, encoder, 7)}"]).tobytes() if what == "vector" else text
    old = old if isinstance(old, bytes) else old.encode()
    (file,) = files_holding(indexed, old)
    flip(file, old)
    found = verify(home)
    (fault,) = found.faults
    assert "differ from what was stored" in fault.what and fault.documents == ["d7"]

    report = repair_index("test", home=home, agree=yes)
    assert report.lost == ["d7"]
    assert Manifest.load(indexed).status == "indexing"
    assert verify(home).is_sound
    assert index_corpus(corpus(COUNT), name="test", encoder=encoder, home=home).added == 1
    assert verify(home).is_sound and len(stored(home, encoder)) == COUNT


def stored_text(home: Path, encoder, number: int) -> str:
    return stored(home, encoder)[(f"d{number}", 0)][1]


def test_passages_missing_and_unlisted(corpus, encoder, indexed, home):
    with Lock(indexed) as lock, opened(indexed, lock) as contents:
        page = contents.store.scroll(limit=10)
        stranger = Point(str(uuid.uuid4()), page.points[0].point.payload)
        gone = [point.point.payload["id"] for point in page.points[:3]]
        contents.store.delete([point.point.id for point in page.points[:3]])
        contents.store.upsert([stranger], {"": page.points[9].dense[""][None]})
        contents.store.flush()
    found = verify(home)
    assert [fault.what for fault in found.faults] == [
        "3 of 300 documents lack passages that are listed",
        "the store holds 1 passages that are not listed",
    ]
    assert found.faults[0].documents == sorted(gone)

    declined = repair_index("test", home=home, agree=lambda step: False)
    assert len(declined.declined) == 2 and not declined.done and verify(home).faults == found.faults
    report = repair_index("test", home=home, agree=yes)
    assert report.lost == sorted(gone)
    assert index_corpus(corpus(COUNT), name="test", encoder=encoder, home=home).added == 3
    assert verify(home).is_sound


def cut(path: Path, part: float = 0.5) -> None:
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * part))


def zero(path: Path) -> None:
    size = path.stat().st_size
    cut(path, 0.001)
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGES = {  # damage -> (files, harm, whether the repaired index still has everything)
    "id tracker cut": ("store/segments/*/mutable_id_tracker.mappings", cut, False),
    "vectors emptied": ("store/segments/*/vector_storage/vectors/status.dat", cut, False),
    "vectors cut": ("store/segments/*/vector_storage/vectors/chunk_0.mmap", lambda path: cut(path, 0.01), False),
    "vectors zeroed": ("store/segments/*/vector_storage/vectors/chunk_0.mmap", lambda path: zero(path), False),
    "texts cut": ("store/segments/*/payload_storage/page_0.dat", lambda path: cut(path, 0.001), False),
    "texts zeroed": ("store/segments/*/payload_storage/page_0.dat", lambda path: zero(path), False),
    "settings gone": ("store/segments/*/segment.json", Path.unlink, False),
    "log garbled": ("store/wal/open-*", lambda path: path.write_bytes(b"garbage" * 1000), True),
    "segment gone": ("store/segments/*", shutil.rmtree, False),
    "store gone": ("store", shutil.rmtree, False),
    "list garbled": ("documents.sqlite", lambda path: path.write_bytes(b"garbage" * 1000), False),
    "list emptied": ("documents.sqlite", lambda path: path.write_bytes(b""), False),
    "list gone": ("documents.sqlite", Path.unlink, False),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage, corpus, encoder, indexed, home):
    before = stored(home, encoder)
    pattern, harm, all_kept = DAMAGES[damage]
    found = list(indexed.glob(pattern))
    assert found
    for file in found:
        harm(file)
    assert not verify(home).is_sound
    report = repair_index("test", home=home, agree=yes)
    assert report.done
    assert (report.lost == [] and not report.lost_all) == all_kept, report
    if all_kept:
        assert stored(home, encoder) == before and verify(home).is_sound
        return
    again = index_corpus(corpus(COUNT), name="test", encoder=encoder, home=home)
    assert again.encoded == (COUNT if report.lost_all else len(report.lost))
    assert stored(home, encoder) == before and verify(home).is_sound


def test_declining_sets_nothing_aside(indexed, home):
    for file in indexed.glob("store/wal/open-*"):
        file.write_bytes(b"garbage" * 1000)
    report = repair_index("test", home=home, agree=lambda step: False)
    assert len(report.declined) == 1 and "set the store's log aside" in report.declined[0]
    assert not report.done and not (indexed / "aside").exists()
    assert repair_index("test", home=home, agree=yes).lost == []
    assert verify(home).passages == COUNT


def test_damaged_files_are_set_aside_and_go_with_the_index(indexed, home):
    from epic_search.index import delete_index

    (indexed / "documents.sqlite").write_bytes(b"garbage" * 1000)
    repair_index("test", home=home, agree=yes)
    assert [path.read_bytes()[:7] for path in indexed.glob("aside/*/documents.sqlite")] == [b"garbage"]
    assert list(indexed.glob("aside/*/store/segments"))
    delete_index("test", home)
    assert not indexed.exists()


def test_an_index_from_before_checksums(corpus, encoder, indexed, home):
    with sqlite3.connect(indexed / "documents.sqlite") as connection:
        connection.execute("DROP TABLE checksums")
    connection.close()
    found = verify(home)
    assert found.is_sound and found.without_checksum == COUNT
    changed = corpus(COUNT, changed=frozenset(range(10)))
    assert index_corpus(changed, name="test", encoder=encoder, home=home).changed == 10
    found = verify(home)
    assert found.is_sound and found.without_checksum == COUNT - 10


def test_damaged_manifest(indexed, home):
    (indexed / "manifest.json").write_text('{"fingerprint": ')
    (fault,) = verify(home).faults
    assert "cannot read" in fault.what and "manifest.json" in fault.what
    with pytest.raises(UserError, match="cannot read"):
        repair_index("test", home=home, agree=yes)


def test_checksums_survive_the_engine_s_numbers(tmp_path):
    """The engine gives floats back with other last digits, and integers beyond 64 bits as floats."""
    rng = np.random.default_rng(0)
    floats = [x for x in (struct.unpack("<d", rng.bytes(8))[0] for _ in range(3000)) if math.isfinite(x)]
    payloads = [
        {"v": floats[n::100], "n": [2**70 + n, -(2**63) - 1, 2**64 - 1, n, True, None, "é"]} for n in range(100)
    ]
    points = [Point(str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))), payload) for n, payload in enumerate(payloads)]
    vectors_PE = rng.standard_normal((100, 8)).astype(np.float32)
    vectors_PE /= np.linalg.norm(vectors_PE, axis=1, keepdims=True)
    store = EdgeStore(tmp_path / "store", schema=Schema({"": 8}), create=True)
    store.upsert(points, {"": vectors_PE})
    found = {stored.point.id: stored for stored in store.scroll(limit=100).points}
    store.close()
    assert any(found[point.id].point.payload != point.payload for point in points)
    for point, vector_E in zip(points, vectors_PE, strict=True):
        back = found[point.id]
        assert checksum(back.point, back.dense[""]) == checksum(point, vector_E)


def test_a_search_that_meets_damage_says_so(indexed, encoder, home):
    for file in indexed.glob("store/segments/*/vector_storage/vectors/chunk_0.mmap"):
        cut(file, 0.01)
    with (
        Searcher.open("test", home=home, encoder=encoder) as searcher,
        pytest.raises(UserError, match=r"cannot be read: .*epic-search indexes verify test"),
    ):
        searcher.search(["river"])
