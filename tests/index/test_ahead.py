"""A query's words are searched while it is encoded: the answers stay, and so does the peace when one of both fails."""

import os
import signal
import threading
from select import select

import pytest
from index_helpers import document
from stand_in import NoTies, StandIn

from epic_search.errors import Unavailable, UserError
from epic_search.index import Searcher, index_corpus
from epic_search.index.store import edge
from epic_search.index.store.protocol import StoreQuery
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


def test_the_words_are_searched_while_the_query_is_encoded(searcher, encoder, monkeypatch):
    """The engine answers before anybody reads the answer: the encoding waits for it here."""
    encode, answer = encoder.encode_queries, searcher._contents.store._process.stdout

    def encode_after(texts, **options):
        assert select([answer], [], [], SECONDS)[0], "nothing was searched while the query is being encoded"
        return encode(texts, **options)

    monkeypatch.setattr(encoder, "encode_queries", encode_after)
    [[best, *_]] = searcher.search(["word7"])
    assert best.id == "d7"


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


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGBUS])
def test_an_engine_that_dies_meanwhile_is_one_sentence(searcher, encoder, monkeypatch, death):
    def dies(texts, **options):
        os.kill(searcher._contents.store._process.pid, death)
        return StandIn.encode_queries(encoder, texts, **options)

    monkeypatch.setattr(encoder, "encode_queries", dies)
    with pytest.raises(Unavailable, match=r"the store process of .* ended with signal"):
        searcher.search(["word7"])


def test_a_leg_that_nobody_used_does_not_keep_the_engine_from_ending_well(write, home, encoder, monkeypatch):
    """Its answer, of many queries, is larger than what a pipe holds."""
    index_corpus(write(*rows(300)), name="test", encoder=encoder, home=home)

    def fails(texts, **options):
        raise UserError("no")

    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        process = searcher._contents.store._process
        with monkeypatch.context() as patched, pytest.raises(UserError, match=r"^no$"):
            patched.setattr(encoder, "encode_queries", fails)
            searcher.search(["river stone metal"] * 60)
    assert process.wait(SECONDS) == 0
    with Searcher.open("test", home=home, encoder=encoder) as searcher:
        with monkeypatch.context() as patched, pytest.raises(UserError, match=r"^no$"):
            patched.setattr(encoder, "encode_queries", fails)
            searcher.search(["river stone metal"] * 60)
        assert len(searcher.sample(200)) == 200, "nor from answering what needs no encoding"
        assert searcher.search(["word7"] * 60)[-1][0].id == "d7"


def test_an_interrupted_encoding_leaves_a_whole_index(searcher, encoder, monkeypatch):
    def interrupted(texts, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(encoder, "encode_queries", interrupted)
        searcher.search(["word7"])
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


def test_a_point_that_goes_meanwhile_is_not_found(searcher, encoder):
    store, terms = searcher._store, searcher._contents.lexical.of_query(QUERIES[0])
    [vector_E] = encoder.encode_queries([QUERIES[0]], prompt=searcher.prompt)
    [before] = store.search([StoreQuery(vector_E, terms)], limit=5)
    [leg] = store.ahead([terms])
    store.delete([before[0].id])
    [after] = store.search([StoreQuery(vector_E, terms, leg)], limit=5)
    assert [match.id for match in after] == [match.id for match in before[1:]]
