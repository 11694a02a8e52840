"""An index moved to a server and back keeps its vectors, its rankings and what it is."""

import numpy as np
import pytest
from stand_in import NoTies

from epic_search.encoder import Demonstration
from epic_search.errors import UserError
from epic_search.index import Searcher, index_corpus, list_indexes
from epic_search.index.promote import promote, pull
from epic_search.index.store import connection, protocol
from epic_search.index.taught_pair import Lesson
from epic_search.index.ways import Ways, set_ways

UPSERT = r"PUT .*/points$"


@pytest.fixture
def encoder() -> NoTies:
    return NoTies(dim=16)


def rankings(home, encoder, name="test", queries=100):
    with Searcher.open(name, home=home, encoder=encoder) as searcher:
        # One word that one document has: so the lexical ranking has no equal scores, whose order is the engine's.
        found = searcher.search([f"query{n} about word{n * 7 % 200}" for n in range(queries)], k=10)
        assert searcher.mode() == "hybrid"
    return [[(hit.id, hit.text, hit.payload) for hit in hits] for hits in found]


def test_there_and_back(stub, there, corpus, encoder, home):
    pair = Demonstration(query="q", passage="p")
    index_corpus(corpus(2000), name="test", encoder=encoder, home=home, task="find it", demonstrations=[pair])
    encoder.encoded.clear()
    moved = promote("test", home=home, server=there)
    assert (moved.documents, moved.passages, moved.sent) == (2000, 2000, 2000)
    assert 100 < moved.checked < 400
    back = pull("test", home=home, server=there, target="back")
    assert (back.documents, back.passages) == (2000, 2000)
    assert encoder.encoded == []
    assert rankings(home, encoder) == rankings(there, encoder) == rankings(home, encoder, "back")
    assert [info.name for info in list_indexes(there)] == ["test"]
    for place, name in [(there, "test"), (home, "back")]:
        with Searcher.open(name, home=place, encoder=encoder) as searcher:
            assert (searcher.prompt.task, searcher.prompt.demonstrations) == ("find it", (pair,))


def test_what_was_moved_is_indexed_further(stub, there, corpus, encoder, home):
    index_corpus(corpus(100), name="test", encoder=encoder, home=home)
    promote("test", home=home, server=there)
    pull("test", home=home, server=there, target="back")
    for place, name in [(there, "test"), (home, "back")]:
        report = index_corpus(corpus(100, changed=frozenset({7})), name=name, encoder=encoder, home=place)
        assert (report.changed, report.unchanged) == (1, 99)


def test_it_is_there_in_one_step_and_goes_on_where_it_was_cut_off(stub, there, corpus, encoder, home, monkeypatch):
    monkeypatch.setattr(protocol, "PAGE", 50)
    monkeypatch.setattr(connection, "TRIES", 1)
    index_corpus(corpus(300), name="test", encoder=encoder, home=home)
    stub.fail_from(UPSERT, 4, after=True)
    with pytest.raises(UserError, match="answered 503"):
        promote("test", home=home, server=there)
    stub.well()
    assert list_indexes(there) == []
    report = promote("test", home=home, server=there)
    assert (report.sent, report.passages) == (100, 300)
    assert [one.name for one in stub.client.get_collections().collections] == ["test--1"]


def test_what_changed_since_a_try_that_was_cut_off(stub, there, corpus, encoder, home, monkeypatch):
    monkeypatch.setattr(protocol, "PAGE", 50)
    monkeypatch.setattr(connection, "TRIES", 1)
    index_corpus(corpus(300), name="test", encoder=encoder, home=home)
    stub.fail_from(UPSERT, 4)
    with pytest.raises(UserError):
        promote("test", home=home, server=there)
    stub.well()
    index_corpus(corpus(200, changed=frozenset(range(100))), name="test", encoder=encoder, home=home, prune=True)
    assert promote("test", home=home, server=there).passages == 200
    assert stub.client.count("test").count == 200
    assert rankings(there, encoder, queries=20) == rankings(home, encoder, queries=20)


def test_an_index_that_is_there_is_replaced(stub, there, corpus, encoder, home):
    index_corpus(corpus(50), name="test", encoder=encoder, home=there)
    index_corpus(corpus(80), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=there, encoder=encoder) as searcher:
        promote("test", home=home, server=there)
        assert searcher.search(["river"])[0]
    assert stub.client.count("test").count == 80
    assert [one.name for one in stub.client.get_collections().collections] == ["test--2"]


def test_another_encoder_s_index_is_not_replaced(stub, there, corpus, encoder, home):
    index_corpus(corpus(50), name="test", encoder=NoTies("other", dim=16), home=there)
    index_corpus(corpus(20), name="test", encoder=encoder, home=home)
    with pytest.raises(UserError, match=r"made by encoder 'other' and this one by 'no-ties'.*--as"):
        promote("test", home=home, server=there)
    assert promote("test", home=home, server=there, target="mine").name == "mine"
    assert [info.name for info in list_indexes(there)] == ["mine", "test"]


def test_an_index_that_is_not_complete(stub, there, corpus, encoder, home, monkeypatch):
    def fails(*_, **__):
        raise UserError("no")

    index_corpus(corpus(20), name="test", encoder=encoder, home=home)
    monkeypatch.setattr(encoder, "encode_passages", fails)
    with pytest.raises(UserError, match="no"):
        index_corpus(corpus(30), name="test", encoder=encoder, home=home)
    with pytest.raises(UserError, match="not complete"):
        promote("test", home=home, server=there)
    assert stub.client.get_collections().collections == []


def test_a_copy_that_is_not_the_same_is_not_shown(stub, there, corpus, encoder, home, monkeypatch):
    """A server that keeps other vectors than it was sent."""
    upsert = stub.client.upsert

    def halved(name, points, **options):
        for point in points:
            point.vector[""] = (np.asarray(point.vector[""]) / 2).tolist()
        return upsert(name, points, **options)

    monkeypatch.setattr(stub.client, "upsert", halved)
    index_corpus(corpus(20), name="test", encoder=encoder, home=home)
    with pytest.raises(UserError, match="is not the one that was sent"):
        promote("test", home=home, server=there)
    assert list_indexes(there) == []


def test_pull_keeps_what_is_here(stub, there, corpus, encoder, home):
    index_corpus(corpus(20), name="test", encoder=encoder, home=there)
    index_corpus(corpus(30), name="test", encoder=encoder, home=home)
    with pytest.raises(UserError, match=r"there is an index 'test' in .*--as"):
        pull("test", home=home, server=there)
    with pytest.raises(UserError, match=r"no index 'none'"):
        pull("none", home=home, server=there)
    assert len(list_indexes(home)) == 1


def test_pull_that_was_cut_off_is_begun_again(stub, there, corpus, encoder, home, monkeypatch):
    index_corpus(corpus(300), name="test", encoder=encoder, home=there)
    monkeypatch.setattr(connection, "TRIES", 1)
    monkeypatch.setattr(protocol, "PAGE", 50)
    stub.fail_from("points/scroll", 3)
    with pytest.raises(UserError):
        pull("test", home=home, server=there)
    stub.well()
    assert pull("test", home=home, server=there).passages == 300
    assert rankings(there, encoder, queries=20) == rankings(home, encoder, queries=20)


def test_pull_of_a_document_in_part(stub, there, write, encoder, home):
    path = write({"_id": "a", "text": " ".join(f"w{n}" for n in range(400))})
    index_corpus(path, name="t", encoder=encoder, home=there)
    records, _ = stub.client.scroll("t", limit=100)
    stub.client.delete("t", [records[0].id])
    with pytest.raises(UserError, match="document 'a' is there in part"):
        pull("t", home=home, server=there)


def test_a_copy_may_be_quantized(stub, there, corpus, encoder, home, monkeypatch):
    index_corpus(corpus(60), name="test", encoder=encoder, home=home)
    monkeypatch.setattr(connection, "TRIES", 1)
    stub.fail_from(UPSERT, 1, after=True)
    with pytest.raises(UserError):
        promote("test", home=home, server=there)
    stub.well()
    promote("test", home=home, server=there, quantize="int8")
    (made,) = [body for method, path, body in stub.bodies if (method, path) == ("PUT", "/collections/test--2")]
    assert b'"int8"' in made
    assert rankings(there, encoder, queries=5) == rankings(home, encoder, queries=5)
    assert any(b'"oversampling":' in body for _, path, body in stub.bodies if path.endswith("/query/batch"))
    assert [one.name for one in stub.client.get_collections().collections] == ["test--2"]


def test_taught_pairs_and_their_ways_travel(stub, there, corpus, encoder, home):
    index_corpus(corpus(50), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        searcher.teach_all([Lesson(f"query{n}", document=f"d{n}") for n in range(20)])
        searcher.teach_all([Lesson("query3", passage="own words")])
    set_ways("test", home=home, demos="nearest", boost=0.5)
    taught = pairs(home, encoder)
    encoder.encoded.clear(), encoder.asked.clear()
    assert promote("test", home=home, server=there).taught == 21
    assert pull("test", home=home, server=there, target="back").taught == 21
    assert encoder.encoded == encoder.asked == []
    assert taught == pairs(there, encoder) == pairs(home, encoder, "back")
    assert encoder.encoded == encoder.asked == [], "nor is anything made anew when they are opened"
    for place, name in [(there, "test"), (home, "back")]:
        assert set_ways(name, home=place) == Ways("nearest", boost=0.5)
    assert [info.name for info in list_indexes(there)] == ["test"]


def test_pairs_taught_there_stay_when_the_index_is_replaced(stub, there, corpus, encoder, home):
    index_corpus(corpus(50), name="test", encoder=encoder, home=home)
    promote("test", home=home, server=there)
    for place, document in [(there, "d7"), (home, "d8")]:
        with Searcher.open("test", home=place, encoder=encoder) as searcher:
            searcher.teach("a query", [document])
    assert promote("test", home=home, server=there).taught == 1
    assert sorted(pair.document for pair in pairs(there, encoder)) == ["d7", "d8"]


def pairs(home, encoder, name="test"):
    with Searcher.open(name, home=home, encoder=encoder) as searcher:
        return searcher.taught()
