"""An index on a Qdrant server behaves as one in a folder, and lives through what happens to servers."""

import json
from itertools import pairwise

import pytest
from stand_in import NoTies
from stub_server import Trouble

from epic_search.encoder import Demonstration
from epic_search.errors import UserError
from epic_search.index import Searcher, delete_index, index_corpus, indexer, list_indexes
from epic_search.index.server_collections import METADATA_KEY
from epic_search.index.store import connection, server
from epic_search.index.store.connection import Server

# One word that one document has: so the lexical ranking has no equal scores, whose order is the engine's.
QUERIES = ["word3", "about word7", "word12", "w1234 nowhere", "word30"]
UPSERT, DELETE = r"PUT .*/points$", r"POST .*/points/delete$"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora of a hundred documents take many chunks, and a chunk several requests."""
    monkeypatch.setattr(indexer, "CHUNK_PASSAGES", 40)
    monkeypatch.setattr(indexer, "GROUP_DOCUMENTS", 20)
    monkeypatch.setattr(server, "REQUEST_POINTS", 25)


@pytest.fixture
def encoder() -> NoTies:
    return NoTies()


def rankings(home, encoder, name="test"):
    with Searcher.open(name, home=home, encoder=encoder) as searcher:
        return [
            [(hit.id, pytest.approx(hit.score, abs=1e-5), hit.title, hit.text, hit.payload) for hit in hits]
            for hits in searcher.search(QUERIES, k=10)
        ]


def held(stub, name="test"):
    """(document, passage) -> text of all points behind an alias; each once."""
    records, _ = stub.client.scroll(name, limit=100_000)
    found = {(r.payload["id"], r.payload["passage"]): r.payload["text"] for r in records}
    assert len(found) == len(records)
    return found


def generations(stub):
    return sorted(one.name for one in stub.client.get_collections().collections)


def test_a_server_gives_what_a_folder_gives(stub, there, corpus, encoder, home):
    for place in (there, home):
        report = index_corpus(corpus(120), name="test", encoder=encoder, home=place)
        assert (report.added, report.documents, report.passages, report.encoded) == (120, 120, 120, 120)
    assert rankings(there, encoder) == rankings(home, encoder)
    for place in (there, home):
        again = NoTies()
        report = index_corpus(corpus(120, changed=frozenset({3, 5})), name="test", encoder=again, home=place)
        assert (report.added, report.changed, report.unchanged, report.encoded) == (0, 2, 118, 2)
        assert len(again.encoded) == 2
        report = index_corpus(corpus(40), name="test", encoder=encoder, home=place, prune=True)
        assert (report.changed, report.removed, report.documents, report.passages) == (2, 80, 40, 40)
    assert rankings(there, encoder) == rankings(home, encoder)


def test_long_documents(there, write, encoder, home):
    long = [{"_id": f"d{n}", "text": " ".join(f"w{n * 7 + word}" for word in range(400))} for n in range(20)]
    for place in (there, home):
        report = index_corpus(write(*long), name="test", encoder=encoder, home=place)
        assert report.documents == 20 and report.passages > 60
    assert rankings(there, encoder) == rankings(home, encoder)
    shorter = [document | {"text": document["text"][:600]} for document in long]
    for place in (there, home):
        report = index_corpus(write(*shorter), name="test", encoder=encoder, home=place)
        assert report.changed == 20 and report.passages < 60
    assert rankings(there, encoder) == rankings(home, encoder)


def test_the_collection_tells_what_it_is(stub, there, corpus, encoder):
    pair = Demonstration(query="q", passage="p")
    options = {"name": "test", "encoder": encoder, "home": Server(stub.url, api_key="s3cr3t")}
    index_corpus(corpus(3), task="find it", demonstrations=[pair], **options)
    metadata = stub.client.get_collection("test").config.metadata[METADATA_KEY]
    assert metadata["fingerprint"] == encoder.fingerprint
    assert (metadata["encoder"], metadata["dim"], metadata["status"]) == ("no-ties", 32, "complete")
    assert (metadata["task"], metadata["demonstrations"]) == ("find it", [{"query": "q", "passage": "p"}])
    assert "s3cr3t" not in json.dumps(metadata)
    with Searcher.open("test", home=there, encoder=encoder) as searcher:
        assert (searcher.prompt.task, searcher.prompt.demonstrations) == ("find it", (pair,))
    index_corpus(corpus(3), task="", demonstrations=[], **options)
    with Searcher.open("test", home=there, encoder=encoder) as searcher:
        assert (searcher.prompt.task, searcher.prompt.demonstrations) == (None, ())


def test_list_and_delete(stub, there, corpus, encoder):
    index_corpus(corpus(3), name="one", encoder=encoder, home=there)
    index_corpus(corpus(4), name="two", encoder=encoder, home=there, task="find")
    stub.client.create_collection("theirs--1", vectors_config={})
    found = [(info.name, info.documents, info.encoder, info.task, info.status) for info in list_indexes(there)]
    assert found == [("one", 3, "no-ties", None, "complete"), ("two", 4, "no-ties", "find", "complete")]
    delete_index("one", there)
    assert generations(stub) == ["theirs--1", "two--1"]
    with pytest.raises(UserError, match=rf"no index 'one' on the Qdrant server at {there.url} \(there: two\)"):
        delete_index("one", there)


@pytest.mark.parametrize("kind", ["status", "reset", "truncated"])
def test_what_is_delivered_twice_is_there_once(stub, there, corpus, encoder, kind):
    """The work is done and its answer is lost, at every kind of write."""
    path, changed = corpus(100), corpus(100, changed=frozenset(range(100)), name="changed.jsonl")
    for pattern in (r"PUT /collections/[^/]+$", "POST /collections/aliases", UPSERT, UPSERT, "PATCH"):
        stub.next(Trouble(kind, status=503, on=pattern, after=True))
    index_corpus(path, name="test", encoder=encoder, home=there)
    stub.next(Trouble(kind, status=503, on=DELETE, after=True))
    index_corpus(changed, name="test", encoder=encoder, home=there)
    assert not stub.trouble
    texts = held(stub)
    assert len(texts) == 100 and all(text.endswith("rewritten") for text in texts.values())
    assert generations(stub) == ["test--1"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [UPSERT, DELETE])
@pytest.mark.parametrize("time", [1, 2])
def test_a_server_that_goes_away_in_the_middle(stub, there, corpus, encoder, step, time, after, monkeypatch):
    """Old and new documents survive, and the next run puts right what was left half done."""
    index_corpus(corpus(100), name="test", encoder=encoder, home=there)
    path = corpus(120, changed=frozenset(range(100)))
    monkeypatch.setattr(connection, "TRIES", 1)
    stub.fail_from(step, time, after=after)
    with pytest.raises(UserError, match=f"{stub.url} answered 503"):
        index_corpus(path, name="test", encoder=encoder, home=there)
    stub.well()
    with Searcher.open("test", home=there, encoder=encoder) as searcher:
        assert len(searcher.search(["river"], k=1000)[0]) >= 100
    again = NoTies()
    report = index_corpus(path, name="test", encoder=again, home=there)
    assert report.documents == report.passages == 120
    assert len(again.encoded) <= 120
    texts = held(stub)
    assert len(texts) == 120 and sum(text.endswith("rewritten") for text in texts.values()) == 100


def test_a_run_goes_on_where_it_was_cut_off(stub, there, corpus, encoder, monkeypatch):
    monkeypatch.setattr(connection, "TRIES", 1)
    chunks = 3
    stub.fail_from(UPSERT, 2 * (chunks - 1) + 1)  # two requests a chunk
    with pytest.raises(UserError):
        index_corpus(corpus(200), name="test", encoder=encoder, home=there)
    stub.well()
    again = NoTies()
    index_corpus(corpus(200), name="test", encoder=again, home=there)
    assert len(again.encoded) <= 200 - (chunks - 1) * indexer.CHUNK_PASSAGES
    assert len(held(stub)) == 200


def test_a_request_that_is_too_large_is_halved(stub, there, corpus, encoder, home):
    stub.max_body = 10_000
    index_corpus(corpus(120), name="test", encoder=encoder, home=there)
    assert len(held(stub)) == 120
    sent = [length for _, _, length in stub.sent(UPSERT)]
    assert max(sent) > 10_000 and sum(length <= 10_000 for length in sent) >= 120 * 300 / 10_000


def test_requests_are_bounded_in_bytes(stub, there, write, encoder):
    documents = [{"_id": f"d{n}", "text": f"w{n}", "blob": "x" * 900_000} for n in range(30)]
    index_corpus(write(*documents), name="test", encoder=encoder, home=there)
    assert len(held(stub)) == 30
    assert max(length for _, _, length in stub.sent(UPSERT)) < 16 * 2**20


def test_other_encoder_is_refused_by_name(stub, there, corpus, encoder):
    index_corpus(corpus(5), name="test", encoder=encoder, home=there)
    other = NoTies("other")
    with pytest.raises(UserError) as raised:
        index_corpus(corpus(5), name="test", encoder=other, home=there)
    for words in ("'no-ties'", encoder.fingerprint[:12], "'other'", other.fingerprint[:12]):
        assert words in str(raised.value)
    assert other.encoded == []
    with pytest.raises(UserError, match="was made by encoder 'no-ties'"):
        Searcher.open("test", home=there, encoder=other)


class TestRebuild:
    def test_the_old_one_answers_until_the_new_one_is_whole(self, stub, there, corpus, encoder, monkeypatch):
        index_corpus(corpus(100), name="test", encoder=encoder, home=there, task="find it")
        path, seen = corpus(150, changed=frozenset(range(150))), []

        def look(progress):
            aliases = stub.client.get_aliases().aliases
            seen.append(([one.collection_name for one in aliases], stub.client.count("test").count))

        report = index_corpus(path, name="test", encoder=encoder, home=there, rebuild=True, progress=look)
        assert report.added == 150
        assert set(map(str, seen)) == {str((["test--1"], 100))}
        assert generations(stub) == ["test--2"]
        texts = held(stub)
        assert len(texts) == 150 and all(text.endswith("rewritten") for text in texts.values())
        (info,) = list_indexes(there)
        assert (info.task, info.documents, info.status) == ("find it", 150, "complete")
        swaps = [number for number, one in enumerate(stub.requests) if one[1] == "/collections/aliases"]
        assert len(swaps) == 2, "one for each generation: the old alias goes and the new one comes in one request"

    def test_who_reads_goes_on_with_the_next_generation(self, stub, there, corpus, encoder):
        index_corpus(corpus(20), name="test", encoder=encoder, home=there)
        with Searcher.open("test", home=there, encoder=encoder) as searcher:
            index_corpus(corpus(50), name="test", encoder=encoder, home=there, rebuild=True)
            found = {hit.id for hit in searcher.search(["river"], k=20)[0]}
            assert found & {f"d{n}" for n in range(20, 50)}
            delete_index("test", there)
            with pytest.raises(UserError, match="was deleted while it was open"):
                searcher.search(["word40"])

    def test_another_encoder_may_rebuild_and_readers_are_told(self, stub, there, corpus, encoder):
        other = NoTies("other")
        index_corpus(corpus(20), name="test", encoder=encoder, home=there)
        with Searcher.open("test", home=there, encoder=encoder) as searcher:
            index_corpus(corpus(20), name="test", encoder=other, home=there, rebuild=True)
            with pytest.raises(UserError, match="made anew by encoder 'other' while it was open for 'no-ties'"):
                searcher.search(["word4"])
        assert rankings(there, other)

    def test_one_that_was_cut_off_goes_on(self, stub, there, corpus, encoder, monkeypatch):
        index_corpus(corpus(20), name="test", encoder=encoder, home=there)
        monkeypatch.setattr(connection, "TRIES", 1)
        for name, encodes in [("other", 120), ("third", 120), ("third", 120 - indexer.CHUNK_PASSAGES)]:
            stub.fail_from(UPSERT, 3)
            again = NoTies(name)
            with pytest.raises(UserError):
                index_corpus(corpus(120), name="test", encoder=again, home=there, rebuild=True)
            stub.well()
            assert len(again.encoded) <= encodes
        assert generations(stub) == ["test--1", "test--2", "test--3"]
        again = NoTies("third")
        index_corpus(corpus(120), name="test", encoder=again, home=there, rebuild=True)
        assert len(again.encoded) <= 120 - 2 * indexer.CHUNK_PASSAGES
        assert generations(stub) == ["test--3"]

    def test_is_for_servers(self, corpus, encoder, home):
        with pytest.raises(UserError, match="--url"):
            index_corpus(corpus(2), name="test", encoder=encoder, home=home, rebuild=True)
        assert not home.exists()


class TestOthersCollections:
    @pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 101, "test--3"])
    def test_names(self, stub, there, corpus, encoder, name):
        with pytest.raises(UserError, match="cannot name an index"):
            index_corpus(corpus(2), name=name, encoder=encoder, home=there)
        assert generations(stub) == []

    def test_a_collection_of_that_name(self, stub, there, corpus, encoder):
        stub.client.create_collection("test", vectors_config={})
        with pytest.raises(UserError, match="a collection 'test' that is not ours"):
            index_corpus(corpus(2), name="test", encoder=encoder, home=there)
        with pytest.raises(UserError, match="no index 'test'"):
            Searcher.open("test", home=there, encoder=encoder)
        with pytest.raises(UserError, match="no index 'test'"):
            delete_index("test", there)
        assert generations(stub) == ["test"]

    def test_a_generation_that_is_not_ours_is_passed_over(self, stub, there, corpus, encoder):
        stub.client.create_collection("test--7", vectors_config={})
        index_corpus(corpus(2), name="test", encoder=encoder, home=there)
        index_corpus(corpus(2), name="test", encoder=encoder, home=there, rebuild=True)
        delete_index("test", there)
        assert generations(stub) == ["test--7"]

    def test_two_first_runs_at_once(self, stub, there, corpus, encoder, monkeypatch):
        """The other run makes the collection between our look and our creation."""
        from epic_search.index import server_place

        create, other = server_place.create_collection, NoTies("other")

        def late(*arguments, **options):
            monkeypatch.setattr(server_place, "create_collection", create)
            index_corpus(corpus(3), name="test", encoder=other, home=there)
            create(*arguments, **options)

        monkeypatch.setattr(server_place, "create_collection", late)
        with pytest.raises(UserError, match="another run has just made index 'test'"):
            index_corpus(corpus(2), name="test", encoder=encoder, home=there)
        assert len(held(stub)) == 3

    def test_metadata_of_a_newer_format(self, stub, there, corpus, encoder):
        index_corpus(corpus(2), name="test", encoder=encoder, home=there)
        metadata = stub.client.get_collection("test").config.metadata[METADATA_KEY]
        newer = {METADATA_KEY: metadata | {"format": 99, "epic_search": "9.0"}}
        stub.client.update_collection("test--1", metadata=newer)
        with pytest.raises(UserError, match=r"format 99, written by epic-search 9\.0"):
            Searcher.open("test", home=there, encoder=encoder)
        (info,) = list_indexes(there)
        assert info.status == "unreadable" and "format 99" in info.problem
        delete_index("test", there)
        assert generations(stub) == []


def test_versions_that_two_runs_left_are_healed(stub, there, corpus, encoder):
    """A document in two whole versions, or in part, is stored anew by the next run that sees it."""
    index_corpus(corpus(5), name="test", encoder=encoder, home=there)
    records, _ = stub.client.scroll("test", limit=10, with_vectors=True)
    old = records[0]
    twin = old.payload | {"version": "00" * 32}
    from qdrant_client import models

    point = models.PointStruct(id="00000000-0000-0000-0000-000000000001", vector=old.vector, payload=twin)
    stub.client.upsert("test", [point])
    again = NoTies()
    report = index_corpus(corpus(5), name="test", encoder=again, home=there)
    assert len(again.encoded) == 1 and report.documents == report.passages == 5
    assert len(held(stub)) == 5


def test_hits_are_in_order(there, corpus, encoder):
    index_corpus(corpus(50), name="test", encoder=encoder, home=there)
    with Searcher.open("test", home=there, encoder=encoder) as searcher:
        (hits,) = searcher.search(["river"], k=50)
    assert len(hits) == 50 and all(one.score >= following.score for one, following in pairwise(hits))
