"""A query's words are searched while it is encoded: the answers stay, and so does the peace when one of both fails."""

import os
import signal
import threading
import time

import pytest
from index_helpers import document
from stand_in import NoTies, StandIn

from epic_search.errors import Unavailable, UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.store import edge
from epic_search.index.store.server import ServerStore
from epic_search.index.ways import Ways

SECONDS = 60  # for what takes a moment
QUERIES = ["word7 river stone", "honey and the forest", "the and of", "metal tiger word12"]
OPTIONS = [
    {},
    {"k": 3, "offset": 7},
    {"k": 150},
    {"filter": "lang = en and score >= 3"},
    {"filter": "score > 1000"},
    {"group_by": "lang", "k": 2},
    {"min_score": 0.4},
    {"explained": True},
    {"texts": False, "k": 40},
    {"mode": "dense"},
    {"ways": Ways("nearest", demos_k=2, boost=1.0)},
    {"ways": Ways("none", boost=0.0)},
]


class Trained(NoTies):
    """An encoder that was trained for vectors of 16 of its 32 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.config.matryoshka = [16]


def rows(count: int) -> list[dict[str, object]]:
    return [document(n) | {"lang": ("en", "de", "fr")[n % 3], "score": n / 10} for n in range(count)]


@pytest.fixture
def searcher(write, home, encoder):
    index_corpus(write(*rows(60)), name="test", encoder=encoder, home=home)
    with Searcher.open("test", home=home, encoder=encoder) as opened:
        yield opened


def legs_ended() -> bool:
    """Whether no thread is left that began a leg."""
    end = time.monotonic() + SECONDS
    while any("begun" in thread.name for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("stored", ["folder", "folder, first stage", "server"])
def test_answers_are_those_of_a_search_after_the_encoding(write, home, there, monkeypatch, stored):
    encoder, place = Trained(), there if stored == "server" else home
    width = 16 if "stage" in stored else None
    index_corpus(write(*rows(240)), name="test", encoder=encoder, home=place, first_stage=width)
    with Searcher.open("test", home=place, encoder=encoder) as searcher:
        for taught in (False, True):
            if taught:
                searcher.teach("river stone", ["d7", "d8"])
            found = [searcher.search(QUERIES, **options) for options in OPTIONS]
            single = [searcher.search([query]) for query in QUERIES]
            with monkeypatch.context() as patched:
                for store in (edge.EdgeStore, ServerStore):
                    patched.setattr(store, "ahead", lambda self, queries, **_: [None] * len(queries))
                for options, answers in zip(OPTIONS, found, strict=True):
                    assert searcher.search(QUERIES, **options) == answers, options
                assert [searcher.search([query]) for query in QUERIES] == single
    assert legs_ended()


def test_the_words_are_searched_before_the_query_is_encoded(searcher, encoder, monkeypatch):
    searched, encode = threading.Event(), encoder.encode_queries
    found = searcher._contents.store._lexical_rankings
    monkeypatch.setattr(
        searcher._contents.store, "_lexical_rankings", lambda *asked: (found(*asked), searched.set())[0]
    )

    def encode_after(texts, **options):
        assert searched.wait(SECONDS), "nothing was searched while the query is being encoded"
        return encode(texts, **options)

    monkeypatch.setattr(encoder, "encode_queries", encode_after)
    [[best, *_]] = searcher.search(["word7"])
    assert best.id == "d7" and searched.is_set()


def test_after_an_encoding_that_failed_the_next_query_gets_its_own_answer(searcher, encoder, monkeypatch):
    before = searcher.search(QUERIES)
    with monkeypatch.context() as patched:

        def fails(texts, **options):
            raise UserError("the query is too long")

        patched.setattr(encoder, "encode_queries", fails)
        for query in QUERIES:
            with pytest.raises(UserError, match="too long"):
                searcher.search([query, *QUERIES])
    assert [searcher.search([query])[0] for query in reversed(QUERIES)] == before[::-1]
    assert searcher.search(QUERIES) == before
    assert legs_ended()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGBUS])
def test_an_engine_that_dies_meanwhile_is_one_sentence(searcher, encoder, monkeypatch, death):
    def dies(texts, **options):
        os.kill(searcher._contents.store._process.pid, death)
        return StandIn.encode_queries(encoder, texts, **options)

    monkeypatch.setattr(encoder, "encode_queries", dies)
    with pytest.raises(Unavailable, match=r"the store process of .* ended with signal"):
        searcher.search(["word7"])
    assert legs_ended()


def test_to_close_waits_for_no_engine_that_stands_still(write, home, encoder, monkeypatch):
    index_corpus(write(*rows(20)), name="test", encoder=encoder, home=home)
    monkeypatch.setattr(edge, "AHEAD_SECONDS", 0.05)

    def fails(texts, **options):
        raise UserError("no")

    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        process = searcher._contents.store._process
        os.kill(process.pid, signal.SIGSTOP)
        with monkeypatch.context() as patched, pytest.raises(UserError, match=r"^no$"):
            patched.setattr(encoder, "encode_queries", fails)
            searcher.search(["word7"])
    assert process.wait(SECONDS) == -signal.SIGKILL and legs_ended()
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        assert searcher.search(["word7"])[0][0].id == "d7"


def test_many_threads_search_and_fail_at_once(searcher, encoder, monkeypatch):
    queries = [f"word{n} river" for n in range(40)]
    alone, encode = {query: searcher.search([query]) for query in queries}, encoder.encode_queries

    def sometimes(texts, **options):
        if texts[0] == "fails":
            raise UserError("fails")
        return encode(texts, **options)

    monkeypatch.setattr(encoder, "encode_queries", sometimes)
    wrong: list[str] = []

    def ask(some):
        for query in some:
            if searcher.search([query]) != alone[query]:
                wrong.append(query)
            with pytest.raises(UserError, match="fails"):
                searcher.search(["fails"])

    threads = [threading.Thread(target=ask, args=(queries[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads) and wrong == []
    assert legs_ended()
