"""What is taught to an index on a server: as in a folder, from any number of machines at once, and with the index."""

import threading
from contextlib import closing

import numpy as np
import pytest
from stand_in import NoTies, StandIn
from stub_server import Trouble

from epic_search.errors import UserError
from epic_search.index import Searcher, delete_index, index_corpus, list_indexes
from epic_search.index.place import place_of
from epic_search.index.server_taught import TAUGHT
from epic_search.index.store.connection import Server
from epic_search.index.suggest import suggest
from epic_search.index.taught_pair import Lesson, label
from epic_search.index.ways import Ways, set_ways

DEADLINE = 60


@pytest.fixture
def indexed(there, corpus, encoder) -> Server:
    """The server, with an index of 40 documents."""
    index_corpus(corpus(40), name="test", encoder=encoder, home=there)
    return there


def opened(home, encoder, name="test") -> Searcher:
    return Searcher.open(name, home=home, encoder=encoder)


def taught(home, encoder) -> set[tuple[str, str | None, bool]]:
    with opened(home, encoder) as searcher:
        return {(pair.query, pair.document, pair.stale) for pair in searcher.taught()}


def collections(stub) -> list[str]:
    return sorted(TAUGHT.sub("TAUGHT", one.name) for one in stub.client.get_collections().collections)


def test_a_server_learns_what_a_folder_learns(stub, there, corpus, home):
    """The same lessons, the same pairs, vectors, uses, rankings and suggestions."""
    encoder = NoTies()
    queries = ["colour of the evening sky", "sky 3", "entirely different words"]
    found, vectors = [], []
    for place in (there, home):
        index_corpus(corpus(60), name="test", encoder=encoder, home=place)
        with opened(place, encoder) as searcher:
            assert searcher.taught() == [] and searcher.forget_all() == 0
            new = searcher.teach("colour of the sky", ["d42", "d7"])
            assert [pair.document for pair in new] == ["d42", "d7"] and searcher.manifest.taught == 2
            searcher.teach_all([Lesson(f"sky {n}", document=f"d{n}") for n in range(10)])
            searcher.teach_all([Lesson("sky", passage="word9 word9")])
            assert [pair.document for pair in searcher.teach(" sky 3 ", ["d3", "d4"])] == ["d4"]
            assert [pair.document for pair in searcher.forget("sky 5")] == ["d5"]
            with pytest.raises(UserError, match="index 'test' has no document 'd420'"):
                searcher.teach("sky", ["d1", "d420"])
        with opened(place, encoder) as searcher:
            adapted = searcher.adapt(queries, ways=Ways("nearest", demos_k=2))
            found.append(
                (
                    sorted((label(pair), pair.query, pair.title, pair.passage) for pair in searcher.taught()),
                    searcher.manifest.taught,
                    searcher.reach,
                    [[(label(use.neighbour.pair), use.shown) for use in used] for used in adapted.uses],
                    [[hit.id for hit in hits] for hits in searcher.search(queries, mode="dense")],
                    [one.query for one in suggest(searcher, ["sky 3", "sea 1", "sea 2"], by="coverage")],
                )
            )
            vectors.append(adapted.vectors_QE)
    assert found[0] == found[1] and found[0][1] == 13
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert collections(stub) == ["TAUGHT", "test--1"]
    assert [info.name for info in list_indexes(there)] == ["test"]


def test_two_machines_teach_at_once(indexed, encoder):
    """Each has the index open from before anything was taught."""
    machines = [opened(indexed, StandIn()) for _ in range(2)]
    start, failures = threading.Barrier(2), []

    def teach(number: int) -> None:
        try:
            start.wait(DEADLINE)
            for n in range(12):
                machines[number].teach(f"query {number} {n}", [f"d{n}"])
                machines[number].teach("both", [f"d{n}"])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=teach, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert failures == []
    both = {("both", f"d{n}", False) for n in range(12)}
    each = {(f"query {number} {n}", f"d{n}", False) for number in range(2) for n in range(12)}
    assert taught(indexed, encoder) == both | each
    assert len(machines[0].taught()) == 36, "what the other one taught is seen without opening again"
    for machine in machines:
        machine.close()


def test_an_index_that_is_taught_nothing_is_not_asked_for_it_by_every_query(stub, indexed, encoder, monkeypatch):
    before = len(stub.sent("taught.*/exists"))
    with opened(indexed, encoder) as searcher:
        for n in range(10):
            searcher.search([f"sky {n}"])
        assert len(stub.sent("taught.*/exists")) == before + 1
        with opened(indexed, StandIn()) as other:
            other.teach("sky", ["d1"])
        monkeypatch.setattr("epic_search.index.taught.LOOK_SECONDS", 0)
        assert searcher.search(["sky"])[0][0].id == "d1", "what another machine has taught is seen after some seconds"


@pytest.mark.parametrize("kind", ["status", "reset"])
def test_an_answer_that_got_lost(stub, indexed, encoder, kind):
    with opened(indexed, encoder) as searcher:
        for pattern in ("PUT .*taught-[^/]*$", "PUT .*taught.*/points", "POST .*taught.*/points/delete"):
            stub.next(Trouble(kind, status=503, on=pattern, after=True))
        searcher.teach("sky", ["d1", "d2"])
        searcher.forget("sky", ["d2"])
    assert not stub.trouble
    assert taught(indexed, encoder) == {("sky", "d1", False)}


class TestFollowing:
    def test_pairs_are_in_step_when_a_run_ends(self, indexed, corpus, encoder):
        """So that who may only read finds them so."""
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d1", "d2", "d3"])
        index_corpus(
            corpus(39, changed=frozenset({2})), name="test", encoder=encoder, home=indexed, task="find it", prune=True
        )
        encoder.asked.clear()
        with opened(indexed, encoder) as searcher:
            assert encoder.asked == []
            assert {pair.document: pair.passage.endswith("rewritten") for pair in searcher.taught()} == {
                "d1": False,
                "d2": True,
                "d3": False,
            }

    def test_a_document_that_goes_and_comes_back(self, indexed, corpus, encoder):
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d39", "d1"])
        index_corpus(corpus(39), name="test", encoder=encoder, home=indexed, prune=True)
        assert taught(indexed, encoder) == {("sky", "d39", True), ("sky", "d1", False)}
        index_corpus(corpus(40), name="test", encoder=encoder, home=indexed)
        assert taught(indexed, encoder) == {("sky", "d39", False), ("sky", "d1", False)}

    def test_who_has_the_index_open_sees_which_documents_are_gone(self, stub, indexed, corpus, encoder, monkeypatch):
        with opened(indexed, encoder) as reader:
            with opened(indexed, StandIn()) as other:
                other.teach("sky", ["d39", "d1"])
            assert {(pair.document, pair.stale) for pair in reader.taught()} == {("d39", False), ("d1", False)}
            for count, changed, stale in [(39, {1}, {"d39"}), (40, {1}, set())]:
                index_corpus(
                    corpus(count, changed=frozenset(changed)), name="test", encoder=StandIn(), home=indexed, prune=True
                )
                assert {pair.document for pair in reader.taught() if pair.stale} != stale, "not before some seconds"
                with monkeypatch.context() as patch:
                    patch.setattr("epic_search.index.taught.LOOK_SECONDS", 0)
                    found = {pair.document: pair for pair in reader.taught()}
                assert {id for id, pair in found.items() if pair.stale} == stale
                assert found["d1"].passage.endswith("rewritten"), "the run made it anew"
                assert len(reader.neighbours(["sky"], k=2)[0]) == 2 - len(stale)
            reader.search(["sky"])
            before = len(stub.sent("taught.*/scroll"))
            for n in range(10):
                reader.search([f"sky {n}"])
            assert len(stub.sent("taught.*/scroll")) == before, "nothing is read again where nothing has changed"

    def test_a_key_that_may_only_read(self, stub, indexed, corpus, encoder, monkeypatch):
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d1"])
        with monkeypatch.context() as patch:  # a run that was cut off before it could bring pairs in step
            patch.setattr("epic_search.index.server_place.ServerPlace.settle", lambda *_, **__: None)
            index_corpus(corpus(40, changed=frozenset({1})), name="test", encoder=encoder, home=indexed)
        stub.next(*(Trouble("status", status=403, on="PUT .*/points") for _ in range(2)))
        with opened(indexed, encoder) as searcher:
            assert searcher.search(["sky"])[0][0].id == "d1"
            with pytest.raises(UserError, match="refused the key"):
                searcher.teach("sea", ["d2"])


class TestGenerations:
    def test_made_anew_by_the_same_encoder(self, stub, indexed, corpus, encoder):
        """Who teaches while it is made anew has the old one open; nothing of it is lost."""
        set_ways("test", home=indexed, demos="nearest")
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d1"])
            changed = corpus(40, changed=frozenset({1, 2}))
            seen = []

            def look(progress):
                if not seen:
                    seen.append(searcher.teach("meanwhile", ["d2"]))

            index_corpus(changed, name="test", encoder=encoder, home=indexed, rebuild=True, progress=look)
            searcher.teach("afterwards", ["d3"])
        assert collections(stub) == ["TAUGHT", "test--2"]
        with opened(indexed, encoder) as searcher:
            assert {(pair.query, pair.document) for pair in searcher.taught()} == {
                ("sky", "d1"),
                ("meanwhile", "d2"),
                ("afterwards", "d3"),
            }
            assert all(pair.passage.endswith("rewritten") for pair in searcher.taught() if pair.document != "d3")
            assert searcher.ways == Ways("nearest")

    def test_made_anew_by_another_encoder(self, stub, indexed, corpus, encoder):
        other = StandIn("other", dim=64)
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d1", "d39"])
            searcher.teach_all([Lesson("sea", passage="own words")])
            times = {pair.query: pair.taught for pair in searcher.taught()}
            index_corpus(corpus(39), name="test", encoder=other, home=indexed, rebuild=True)
            with pytest.raises(UserError, match="made anew by encoder 'other' while it was open"):
                searcher.teach("too late", ["d2"])
        assert collections(stub) == ["TAUGHT", "test--2"]
        assert taught(indexed, other) == {("sky", "d1", False), ("sky", "d39", True), ("sea", None, False)}
        with opened(indexed, other) as searcher:
            assert {pair.query: pair.taught for pair in searcher.taught()} == times
            assert searcher.search(["sky"])[0][0].id == "d1"

    def test_a_run_that_was_cut_off_before_it_brought_the_pairs(self, stub, indexed, corpus, encoder, monkeypatch):
        """Who opens the index brings them; two machines may do so at once, and one finds that it is done."""
        other = StandIn("other", dim=64)
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d1", "d39"])
        with monkeypatch.context() as patch:
            patch.setattr("epic_search.index.server_place.ServerPlace.settle", lambda *_, **__: None)
            index_corpus(corpus(39), name="test", encoder=other, home=indexed, rebuild=True)
        stub.next(Trouble("status", status=404, on="POST .*taught.*/scroll"))
        assert taught(indexed, other) == set() and not stub.trouble
        with opened(indexed, other) as searcher:
            assert {(pair.document, pair.stale) for pair in searcher.taught()} == {("d1", False), ("d39", True)}
            assert [near.pair.document for near in searcher.neighbours(["sky"], k=2)[0]] == ["d1"]

    def test_who_opens_it_meanwhile_takes_nothing_from_the_successor(self, stub, indexed, corpus, encoder):
        other = StandIn("other", dim=64)
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d1"])
        with closing(place_of("test", indexed)) as place:
            manifest = place.manifest()
            index_corpus(corpus(40), name="test", encoder=other, home=indexed, rebuild=True)
            with (
                place.contents(manifest, None) as contents,
                pytest.raises(UserError, match="made anew by encoder 'other' while it was open"),
            ):
                place.taught(manifest, encoder=encoder, contents=contents, lock=None)
        assert taught(indexed, other) == {("sky", "d1", False)}

    def test_deleted_with_the_index(self, stub, indexed, corpus, encoder):
        index_corpus(corpus(3), name="test2", encoder=encoder, home=indexed)
        with opened(indexed, encoder, "test2") as searcher:
            searcher.teach("sky", ["d1"])
        with opened(indexed, encoder) as searcher:
            searcher.teach("sky", ["d1"])
            delete_index("test", indexed)
            assert collections(stub) == ["TAUGHT", "test2--1"]
            for again in (lambda: searcher.teach("sea", ["d1"]), lambda: searcher.taught()):
                with pytest.raises(UserError, match="was deleted while it was open"):
                    again()
        with pytest.raises(UserError, match="cannot name an index on a server"):
            index_corpus(corpus(3), name="a--taught-0123456789abcdef", encoder=encoder, home=indexed)


def test_ways_set_while_a_run_goes_on(indexed, corpus, encoder):
    """The run holds the manifest, and saves it after every chunk."""
    seen = []

    def look(progress):
        if not seen:
            seen.append(set_ways("test", home=indexed, demos="nearest", demos_k=7, boost=0.5))

    index_corpus(corpus(60), name="test", encoder=encoder, home=indexed, progress=look)
    assert set_ways("test", home=indexed) == Ways("nearest", demos_k=7, boost=0.5)
