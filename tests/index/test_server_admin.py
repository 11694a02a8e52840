"""What verify, repair and export say of an index in a folder they say of one on a server."""

import io
import json

import numpy as np
import pytest
from index_helpers import document
from qdrant_client import models

from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.export import export_index
from epic_search.index.place import place_of
from epic_search.index.promote import promote, pull
from epic_search.index.repair import repair_index
from epic_search.index.server_taught import TAUGHT
from epic_search.index.store import connection
from epic_search.index.store.connection import ServerError
from epic_search.index.verify import verify_index

COUNT = 60
WORDS = " ".join(f"w{n}" for n in range(400))


@pytest.fixture
def lines() -> list[dict]:
    return [document(n) for n in range(COUNT)] + [{"_id": "long", "title": "", "text": WORDS}]


def verify(home, encoder, encode=8):
    return verify_index("test", home=home, load=lambda manifest: encoder, encode=encode)


def exported(home, **options):
    out = io.StringIO()
    report = export_index("test", out, home=home, **options)
    return [json.loads(line) for line in out.getvalue().splitlines()], report


def records(stub, **payload):
    wanted = [models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in payload.items()]
    found, _ = stub.client.scroll("test", models.Filter(must=wanted), limit=1000, with_vectors=True)
    return found


def test_a_sound_index(there, write, lines, encoder, home):
    for place in (there, home):
        index_corpus(write(*lines), name="test", encoder=encoder, home=place)
    on_server, in_folder = verify(there, encoder), verify(home, encoder)
    assert on_server == in_folder and on_server.is_sound and on_server.without_checksum == 0
    assert (on_server.documents, on_server.encoded) == (COUNT + 1, 8) and on_server.passages > COUNT + 1
    report = repair_index("test", home=there, agree=lambda step: True)
    assert (report.done, report.lost) == ([], [])


def test_one_number_one_word_and_one_passage(stub, there, write, lines, encoder):
    """A vector and a text that changed, a passage that is gone, and a point of no document."""
    index_corpus(write(*lines), name="test", encoder=encoder, home=there)
    ((vector, text), gone) = (records(stub, id="d3") + records(stub, id="d4"), records(stub, id="long", passage=1)[0])
    turned = np.roll(np.asarray(vector.vector[""]), 1).tolist()
    stub.client.upsert(
        "test", [models.PointStruct(id=vector.id, vector=vector.vector | {"": turned}, payload=vector.payload)]
    )
    stub.client.set_payload("test", {"text": "word4 other words"}, points=[text.id])
    stub.client.delete("test", [gone.id])
    stray = models.PointStruct(id=7, vector={"": turned}, payload={"id": "d5", "note": "not ours"})
    stub.client.upsert("test", [stray])
    found = verify(there, encoder, encode=0)
    assert [(fault.what, fault.documents) for fault in found.faults[:3]] == [
        ("1 of 61 documents are stored in part, or in two versions", ["long"]),
        ("2 of 61 documents differ from what was stored (checksum)", ["d3", "d4"]),
        ("the store holds 1 passages that are no passage of any document", []),
    ]
    declined = repair_index("test", home=there, agree=lambda step: False)
    assert len(declined.declined) == 3 and verify(there, encoder, encode=0).faults == found.faults
    report = repair_index("test", home=there, agree=lambda step: True)
    assert report.lost == ["d3", "d4", "long"]
    assert verify(there, encoder).is_sound
    assert index_corpus(write(*lines), name="test", encoder=encoder, home=there).added == 3
    found = verify(there, encoder)
    assert found.is_sound and found.documents == 61


def test_points_of_others_are_passed_over(stub, there, write, lines, encoder, home):
    """Every reader gives what it gives of the same index in a folder; verify alone tells of them, and repair asks."""
    found = []
    for place in (there, home):
        index_corpus(write(*lines), name="test", encoder=encoder, home=place)
        with Searcher.open("test", home=place, encoder=encoder) as searcher:
            searcher.teach("river", ["d5"])
        if place is there:
            vector = encoder.encode_passages(["river stone"])[0].tolist()
            for collection, names in (("test", [""]), (_taught(stub), ["query", "passage"])):
                for number, payload in enumerate([{}, {"id": "d5", "note": "theirs"}, {"text": "x"}], 7):
                    theirs = models.PointStruct(id=number, vector=dict.fromkeys(names, vector), payload=payload)
                    stub.client.upsert(collection, [theirs])
        records, report = exported(place)
        assert report.others == (3 if place is there else 0) and report.left_out == 0
        index_corpus(write(*lines[1:]), name="test", encoder=encoder, home=place, prune=True)
        with Searcher.open("test", home=place, encoder=encoder) as searcher:
            rankings = [
                searcher.search(["river stone"], k=200, mode=mode)[0] for mode in ("hybrid", "dense", "lexical")
            ]
            ids = [sorted(hit.id for hit in hits) for hits in rankings]
            map = [searcher.map.sample(), searcher.map.spots(["d5", "d6"])]
            sample, taught = searcher.sample(1000), searcher.taught()
            near = [one.pair.document for one in searcher.neighbours(["river"], k=3)[0]]
            assert searcher.document("d5") is not None and searcher.reach > 0
        found.append((records, ids, map, sample, [pair.document for pair in taught], near))
    assert found[0] == found[1]
    [fault] = verify(there, encoder).faults
    assert fault.what == "the store holds 3 passages that are no passage of any document"
    with pytest.raises(UserError, match="no passage of a document; see 'epic-search indexes verify'"):
        pull("test", home=home, server=there, target="copy")
    assert repair_index("test", home=there, agree=lambda step: True).lost == [] and verify(there, encoder).is_sound


def _taught(stub):
    [name] = [one.name for one in stub.client.get_collections().collections if TAUGHT.fullmatch(one.name)]
    return name


def test_a_server_that_fails_is_no_damage(stub, there, write, lines, encoder, monkeypatch):
    index_corpus(write(*lines), name="test", encoder=encoder, home=there)
    monkeypatch.setattr(connection, "TRIES", 1)
    for work in (lambda: verify(there, encoder), lambda: repair_index("test", home=there, agree=lambda step: True)):
        stub.fail_from("points/scroll", 1)
        with pytest.raises(ServerError, match="answered 503"):
            work()
        stub.well()
    assert verify(there, encoder).is_sound


def test_a_run_that_goes_on_gives_no_faults_to_points_of_before_checksums(stub, there, write, lines, encoder):
    index_corpus(write(*lines), name="test", encoder=encoder, home=there)
    stub.client.delete_payload("test", ["checksum"], points=[records(stub, id="d3")[0].id])
    found = verify(there, encoder)
    assert found.is_sound and found.without_checksum == 1


def test_export(stub, there, write, lines, encoder, home, tmp_path):
    for place in (there, home):
        index_corpus(write(*lines), name="test", encoder=encoder, home=place)
    vectors = []
    for place in (there, home):
        found, report = exported(place, vectors=tmp_path / "v.npy")
        assert found == sorted(lines, key=lambda line: line["_id"])
        assert (report.documents, report.joined, report.left_out) == (61, 1, 0)
        vectors.append(np.load(tmp_path / "v.npy"))
    np.testing.assert_array_equal(*vectors)
    stub.client.delete("test", [records(stub, id="long", passage=1)[0].id])
    found, report = exported(there, vectors=tmp_path / "v.npy")
    assert (len(found), report.passages, report.left_out) == (COUNT, COUNT, verify(home, encoder).passages - COUNT - 1)
    assert len(np.load(tmp_path / "v.npy")) == COUNT


class TestPull:
    def test_what_is_pulled_has_checksums(self, stub, there, write, lines, encoder, home):
        index_corpus(write(*lines), name="test", encoder=encoder, home=there)
        pull("test", home=home, server=there)
        found = verify(home, encoder)
        assert found.is_sound and found.without_checksum == 0
        promote("test", home=home, server=there, target="again")
        assert verify_index("again", home=there).without_checksum == 0

    def test_what_changed_on_the_server_is_not_pulled(self, stub, there, write, lines, encoder, home):
        index_corpus(write(*lines), name="test", encoder=encoder, home=there)
        stub.client.set_payload("test", {"text": "other words"}, points=[records(stub, id="d4")[0].id])
        with pytest.raises(UserError, match=r"passage 0 of document 'd4' is not what was stored there \(checksum\)"):
            pull("test", home=home, server=there)


def test_where_it_is(there, write, lines, encoder, home):
    for place in (there, home):
        index_corpus(write(*lines[:3]), name="test", encoder=encoder, home=place)
        with Searcher.open("test", home=place, encoder=encoder) as searcher:
            searcher.teach("sky", ["d1"])
    on_server, in_folder = place_of("test", there), place_of("test", home)
    assert on_server.where == f"collection test--1 at {there.url}" and on_server.sizes() == {}
    assert in_folder.where == str(home / "test") and in_folder.sizes()["size"] > 0
    assert [place.taught_count(place.manifest()) for place in (on_server, in_folder)] == [1, 1]
    on_server.close()
