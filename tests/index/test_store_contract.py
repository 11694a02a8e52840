"""What holds for every vector store: the same assertions over each of them.

A real Qdrant server is asked, too, over REST and over gRPC (on the port after the URL's), where
EPIC_SEARCH_TEST_QDRANT_URL (and ..._API_KEY, if it wants one) names it. What the client's in-memory mode answers,
directly and through the stub, is the client's word for what a server does.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from math import isclose
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient
from stub_server import StubServer

from epic_search.index.filters import And, Compare, Exists, Filter, In, Not, Or
from epic_search.index.store.collection import Layout, create_collection
from epic_search.index.store.connection import Connection, Server
from epic_search.index.store.edge import UPSERT_POINTS, EdgeStore
from epic_search.index.store.edge_worker import candidates
from epic_search.index.store.protocol import (
    Fusion,
    Match,
    Point,
    Schema,
    Sparse,
    StoredPoint,
    StoreQuery,
    VectorStore,
    first_bad_vector,
    shortened,
)
from epic_search.index.store.server import ServerStore

SERVER_URL = os.environ.get("EPIC_SEARCH_TEST_QDRANT_URL", "")
DIM = 16
LANGUAGES = ["en", "de", "fr"]
FIELDS = {
    "n": "int",
    "payload.lang": "keyword",
    "payload.price": "float",
    "payload.ok": "bool",
    "payload.when": "datetime",
    'payload."odd key"': "keyword",
}
Open = Callable[..., VectorStore]


@pytest.fixture(params=["embedded", "in memory", "stub", *(["server", "server by gRPC"] if SERVER_URL else [])])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store, again and again; `create` empties it."""
    with ExitStack() as stack:
        if request.param == "embedded":

            def open_store(schema: Schema, *, create: bool = True) -> VectorStore:
                return EdgeStore(tmp_path / "store", schema=schema, create=create)

        else:
            connection = stack.enter_context(connected(request.param, stack))
            collection = f"epic-search-test-{uuid.uuid4()}"
            stack.callback(lambda: connection(lambda client: client.delete_collection(collection)))

            def open_store(schema: Schema, *, create: bool = True) -> VectorStore:
                if create:
                    create_collection(connection, collection, schema=schema, layout=Layout(), metadata={})
                return ServerStore(connection, collection, schema=schema)

        def opened(schema: Schema, *, create: bool = True) -> VectorStore:
            store = open_store(schema, create=create)
            stack.callback(store.close)
            return store

        yield opened


def connected(kind: str, stack: ExitStack) -> Connection:
    """A connection to the client's in-memory mode, to the stub, or to the real server."""
    if kind == "in memory":
        return Connection(Server("http://in-memory"), client=QdrantClient(":memory:"))
    if kind == "stub":
        return Connection(Server(stack.enter_context(StubServer()).url))
    key = os.environ.get("EPIC_SEARCH_TEST_QDRANT_API_KEY")
    return Connection(Server(SERVER_URL, api_key=key, grpc=kind == "server by gRPC"))


@pytest.mark.skipif(not SERVER_URL, reason="no EPIC_SEARCH_TEST_QDRANT_URL: nothing here was asked of a real server")
def test_a_real_server_is_among_the_stores(opened: Open) -> None:
    assert opened(Schema({"": DIM})).count() == 0


@pytest.fixture
def store(opened: Open) -> VectorStore:
    """A store of passages: dense, lexical, with fields."""
    return opened(Schema({"": DIM, "query": 4}, lexical=True, fields=FIELDS))


def vectors(count: int, *, seed: int = 0, dim: int = DIM) -> np.ndarray:
    vectors_PE = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors_PE / np.linalg.norm(vectors_PE, axis=1, keepdims=True)


def id_of(n: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(n)))


def points(count: int) -> list[Point]:
    return [Point(id_of(n), {"n": n, "payload": payload(n)}) for n in range(count)]


def payload(n: int) -> dict[str, object]:
    given = {
        "lang": LANGUAGES[n % 3] if n % 5 else [LANGUAGES[n % 3], "la"],
        "price": n / 4,
        "ok": n % 2 == 0,
        "when": f"2024-{n % 12 + 1:02d}-15T12:00:00+02:00",
        "odd key": f"o{n % 4}",
    }
    return given if n % 7 else {**given, "lang": None, "price": []}


def sparse(*weights: dict[int, float]) -> list[Sparse]:
    return [
        Sparse(np.array(sorted(one), dtype=np.uint32), np.array([one[t] for t in sorted(one)], dtype=np.float32))
        for one in weights
    ]


def terms(count: int, seed: int = 3) -> list[Sparse]:
    """Some of thirty terms for each point; none for every tenth."""
    random = np.random.default_rng(seed)
    return sparse(
        *(
            {int(term): float(random.uniform(0.5, 2)) for term in random.choice(30, size=6 if n % 10 else 0)}
            for n in range(count)
        )
    )


def asked(vectors_QE: np.ndarray) -> list[StoreQuery]:
    return [StoreQuery(vector_E) for vector_E in vectors_QE]


def numbers(matches: list[Match]) -> list[int]:
    return [match.payload["n"] for match in matches]


def filled(store: VectorStore, count: int = 300) -> VectorStore:
    store.upsert(points(count), {"": vectors(count), "query": vectors(count, dim=4)}, sparse=terms(count))
    return store


class TestDense:
    def test_search_is_exact_on_few_points(self, store):
        filled(store, 500)
        vectors_PE = vectors(500)
        found = store.search(asked(vectors_PE[:20]), limit=5)
        expected = np.argsort(-(vectors_PE[:20] @ vectors_PE.T), axis=1)[:, :5]
        assert [numbers(matches) for matches in found] == expected.tolist()
        assert found[0][0].score == pytest.approx(1.0, abs=1e-5)
        assert found[0][0].id == id_of(0)

    def test_each_vector_has_a_name_of_its_own(self, store):
        store.upsert(points(10)[:5], {"": vectors(5)})
        store.upsert(points(10)[5:], {"": vectors(5, seed=1), "query": vectors(5, seed=2, dim=4)})
        [matches] = store.search(asked(vectors(5, seed=2, dim=4)[2:3]), limit=10, name="query")
        assert numbers(matches)[0] == 7 and set(numbers(matches)) == {5, 6, 7, 8, 9}

    def test_upsert_replaces(self, store):
        filled(store, 10)
        store.upsert([Point(id_of(3), {"n": "new"})], {"": vectors(1, seed=1)})
        assert store.count() == 10
        assert store.search(asked(vectors(1, seed=1)), limit=1)[0][0].payload == {"n": "new"}
        assert id_of(3) not in store.vectors([id_of(3)], name="query"), "nothing of the old point is left"

    def test_upsert_of_known_points_only(self, store):
        filled(store, 10)
        changed = [Point(id_of(n), {"n": "new"}) for n in (3, 50)]
        store.upsert(changed, {"": vectors(2, seed=1)}, only_known=True)
        assert store.count() == 10
        assert store.search(asked(vectors(2, seed=1)[:1]), limit=1)[0][0].payload == {"n": "new"}

    def test_delete(self, store):
        filled(store, 10)
        store.delete([point.id for point in points(12)[8:]])
        assert store.count() == 8

    def test_many_points_in_one_call(self, store):
        assert filled(store, 3 * UPSERT_POINTS + 1).count() == 3 * UPSERT_POINTS + 1

    def test_payload_survives_as_it_is(self, store):
        payload = {"a": [1, 2.5, None, True, {"b": "日本"}], "": -(2**63), "u": 2**64 - 1, "deep": [[[[]]]]}
        store.upsert([Point(id_of(1), payload)], {"": vectors(1)})
        assert store.search(asked(vectors(1)), limit=1)[0][0].payload == payload

    def test_only_the_fields_asked_for(self, store):
        filled(store, 10)
        assert store.search(asked(vectors(1)), limit=1, fields=["n"])[0][0].payload == {"n": 0}

    def test_optimize_keeps_everything(self, store):
        filled(store, 2000)
        store.delete([point.id for point in points(1500)])
        store.optimize()
        assert store.count() == 500

    def test_reopen(self, opened):
        schema = Schema({"": DIM, "query": 4}, lexical=True, fields=FIELDS)
        store = filled(opened(schema), 10)
        store.flush()
        store.close()
        again = opened(schema, create=False)
        assert again.count() == 10
        assert [numbers(matches) for matches in again.search(asked(vectors(10)), limit=1)] == [[n] for n in range(10)]
        assert again.facet("payload.ok") == [(False, 5), (True, 5)]


def test_quantized_search_is_exact_on_few_points(opened):
    store = opened(Schema({"": DIM}, quantize="int8"))
    store.upsert(points(500), {"": vectors(500)})
    store.optimize()
    found = store.search(asked(vectors(500)[:20]), limit=5)
    expected = np.argsort(-(vectors(500)[:20] @ vectors(500).T), axis=1)[:, :5]
    assert [numbers(matches) for matches in found] == expected.tolist()


class TestTwoStages:
    """The first dimensions find candidates, and the whole vectors rank them."""

    WIDTH, LIMIT, COUNT = 4, 5, 900

    @pytest.fixture
    def store(self, opened):
        schema = Schema({"": DIM, "query": 4}, lexical=True, fields=FIELDS, first_stage=self.WIDTH)
        return filled(opened(schema), self.COUNT)

    def nearest(self, query_E: np.ndarray, passing: list[int], limit: int) -> list[int]:
        """The two stages, written down plainly."""
        vectors_PE = vectors(self.COUNT)[passing]
        short_P = shortened(vectors_PE, self.WIDTH) @ query_E[: self.WIDTH]
        first = np.argsort(-short_P)[: candidates(limit)]
        return [passing[n] for n in sorted(first, key=lambda n: -float(vectors_PE[n] @ query_E))][:limit]

    def test_dense(self, store):
        queries_QE = vectors(20, seed=7)
        found = store.search(asked(queries_QE), limit=self.LIMIT)
        everything = list(range(self.COUNT))
        assert [numbers(m) for m in found] == [self.nearest(row, everything, self.LIMIT) for row in queries_QE]
        exact = np.argsort(-(queries_QE @ vectors(self.COUNT).T), axis=1)[:, : self.LIMIT]
        assert [numbers(m) for m in found] != exact.tolist(), "a narrow first stage is no exact search"
        pages = [store.search(asked(queries_QE), limit=limit) for limit in (50, 256)]
        for few, many, most in zip(found, *pages, strict=True):
            assert few == many[: self.LIMIT] and many == most[:50], "what is found does not depend on the page"
        for row_E, matches in zip(queries_QE, found, strict=True):
            whole_M = vectors(self.COUNT)[numbers(matches)] @ row_E
            assert [match.score for match in matches] == pytest.approx(whole_M, abs=1e-5)

    def test_filtered_and_fused(self, store):
        query_E, [query] = vectors(1, seed=9)[0], sparse({2: 1.0, 5: 1.0})
        few = Compare("n", "<", 60)
        [matches] = store.search([StoreQuery(query_E)], limit=3, filter=few)
        assert numbers(matches) == self.nearest(query_E, list(range(60)), 3)
        fusion = Fusion(depth=7)
        kinds = [StoreQuery(query_E, query), StoreQuery(sparse=query)]
        both, lexical = store.search(kinds, limit=14, fusion=fusion, filter=few)
        [dense] = store.search([StoreQuery(query_E)], limit=14, filter=few)
        assert numbers(dense) == self.nearest(query_E, list(range(60)), 14)
        assert {m.payload["n"]: pytest.approx(m.score, rel=1e-4) for m in both} == fused([dense, lexical], fusion)

    def test_short_vectors_are_the_store_s_own(self, store):
        assert store.vectors([id_of(3)]).keys() == {id_of(3)}
        np.testing.assert_array_equal(store.vectors([id_of(3)])[id_of(3)], vectors(self.COUNT)[3])
        for stored in store.scroll(limit=self.COUNT).points:
            assert sorted(stored.dense) == ["", "query"] and stored.dense[""].shape == (DIM,)
        [matches] = store.search(asked(vectors(self.COUNT, dim=4)[7:8]), limit=1, name="query")
        assert numbers(matches) == [7]

    def test_optimized_and_quantized(self, opened):
        store = opened(Schema({"": DIM}, quantize="int8", first_stage=self.WIDTH))
        store.upsert(points(300), {"": vectors(300)})
        store.optimize()
        found = store.search(asked(vectors(300)[:20]), limit=self.LIMIT)
        assert [numbers(matches)[0] for matches in found] == list(range(20))


class TestLexical:
    def test_scores_are_weights_times_inverse_document_frequency(self, store):
        filled(store)
        stored = terms(300)
        [query] = sparse({1: 1.0, 4: 1.0, 29: 1.0})
        [matches] = store.search([StoreQuery(sparse=query)], limit=300)
        expected = bm25(query, stored)
        assert {m.payload["n"]: pytest.approx(m.score, rel=1e-3) for m in matches} == expected
        scores = [match.score for match in matches]
        assert scores == sorted(scores, reverse=True)

    def test_a_query_without_a_term_finds_nothing(self, store):
        filled(store, 20)
        found = store.search([StoreQuery(sparse=sparse({})[0]), StoreQuery(sparse=sparse({99: 1.0})[0])], limit=5)
        assert found == [[], []]

    def test_unsound_sparse_vectors_cannot_be_made(self):
        good = np.array([1, 2], dtype=np.uint32), np.array([1, 2], dtype=np.float32)
        for terms_T, weights_T in [
            (good[0], good[1][:1]),
            (good[0][::-1], good[1]),
            (good[0][[0, 0]], good[1]),
            (good[0], good[1] * np.nan),
            (good[0].astype(np.int64), good[1]),
        ]:
            with pytest.raises(AssertionError):
                Sparse(terms_T, weights_T)


class TestFusion:
    @pytest.mark.parametrize("fusion", [Fusion(), Fusion(depth=7, k=2), Fusion(depth=20, k=10, weights=(3.0, 1.0))])
    def test_reciprocal_ranks(self, store, fusion):
        filled(store)
        queries = [
            StoreQuery(vector_E, sparse({n: 1.0, n + 7: 1.0, n + 9: 1.0})[0])
            for n, vector_E in enumerate(vectors(10, seed=5))
        ]
        found = store.search(queries, limit=2 * fusion.depth, fusion=fusion)
        for query, matches in zip(queries, found, strict=True):
            legs = [StoreQuery(query.dense_E), StoreQuery(sparse=query.sparse)]
            rankings = store.search(legs, limit=2 * fusion.depth)
            assert {m.payload["n"]: pytest.approx(m.score, rel=1e-4) for m in matches} == fused(rankings, fusion)

    def test_equal_scores_share_their_place(self, opened):
        """However they were written: each tenth of the points has the same vector and the same words."""
        store, count = opened(Schema({"": DIM}, lexical=True)), 120
        query = StoreQuery(vectors(1, seed=8)[0], sparse({3: 1.0, 4: 1.0})[0])
        vectors_PE, words = vectors(10)[np.arange(count) % 10], [terms(10)[n % 10] for n in range(count)]
        found = []
        for order, batch in [(np.arange(count), 40), (np.arange(count)[::-1], 17)]:
            for some in np.split(order, range(batch, count, batch)):
                store.upsert([points(count)[n] for n in some], {"": vectors_PE[some]}, sparse=[words[n] for n in some])
            searches = [store.search([query], limit=count, fusion=Fusion(depth=depth))[0] for depth in (100, 9)]
            found.append([[(match.id, match.score) for match in matches] for matches in searches])
            for matches in searches:
                assert matches == sorted(matches, key=lambda match: (-match.score, match.id))
                for n in range(10):
                    assert len({match.score for match in matches if match.payload["n"] % 10 == n}) <= 1
            store.delete([point.id for point in points(count)])
        assert found[0] == found[1] and len(found[0][0]) == 108, "nine groups begin within the first hundred places"

    def test_a_query_without_a_term_is_a_dense_one(self, store):
        filled(store, 20)
        vector_E = vectors(1)[0]
        found = store.search([StoreQuery(vector_E, sparse({})[0]), StoreQuery(vector_E)], limit=5)
        assert found[0] == found[1]

    @pytest.mark.parametrize("filter", [None, Compare("payload.lang", "=", "de"), Compare("n", "<", 0)])
    def test_a_leg_that_ran_ahead_changes_nothing(self, store, filter):
        filled(store)
        words = [*sparse(*({n: 1.0, n + 7: 1.0} for n in range(4)), {}, {99: 1.0}), None]
        legs = store.ahead(words, filter=filter)
        assert len(legs) == len(words) and legs[-1] is None and legs[-3] is None
        plain = [StoreQuery(vector_E, one) for vector_E, one in zip(vectors(len(words), seed=5), words, strict=True)]
        known = [replace(query, leg=leg) for query, leg in zip(plain, legs, strict=True)]
        for fusion in (Fusion(), Fusion(depth=7)):  # legs of another depth are of no use
            for options in ({"limit": 28}, {"limit": 3, "fields": ("n",)}):
                options |= {"filter": filter, "fusion": fusion}
                assert store.search(known, **options) == store.search(plain, **options)
                assert store.search(known[2:3], **options) == store.search(plain[2:3], **options)

    def test_queries_of_all_kinds_at_once(self, store):
        filled(store, 50)
        vector_E, [query] = vectors(1)[0], sparse({2: 1.0})
        kinds = [StoreQuery(vector_E), StoreQuery(sparse=query), StoreQuery(vector_E, query)]
        together = store.search(kinds, limit=5)
        assert together == [store.search([kind], limit=5)[0] for kind in kinds]


FILTERS: list[tuple[Filter, Callable[[int], bool]]] = [
    (Compare("payload.lang", "=", "de"), lambda n: "de" in languages(n)),
    (Compare("payload.lang", "=", "la"), lambda n: "la" in languages(n)),
    (Not(Compare("payload.lang", "=", "de")), lambda n: "de" not in languages(n)),
    (In("payload.lang", ("fr", "la")), lambda n: bool({"fr", "la"} & set(languages(n)))),
    (Exists("payload.lang"), lambda n: bool(n % 7)),
    (Not(Exists("payload.nowhere")), lambda n: True),
    (Compare("payload.price", "<=", 3.25), lambda n: bool(n % 7) and n / 4 <= 3.25),
    (Compare("payload.price", "=", 3.25), lambda n: n == 13),
    (Compare("n", ">", 280), lambda n: n > 280),
    (Compare("n", "=", 28), lambda n: n == 28),
    (In("n", (1, 2, 3, 999)), lambda n: n in (1, 2, 3)),
    (Compare("payload.ok", "=", True), lambda n: n % 2 == 0),
    (Compare("payload.ok", "=", False), lambda n: n % 2 == 1),
    (Compare("payload.when", ">=", datetime(2024, 11, 15, 10, tzinfo=UTC)), lambda n: n % 12 >= 10),
    (Compare("payload.when", "=", datetime(2024, 11, 15, 10, tzinfo=UTC)), lambda n: n % 12 == 10),
    (Compare("payload.when", ">", datetime(2024, 11, 15, 10, tzinfo=UTC)), lambda n: n % 12 == 11),
    (Compare('payload."odd key"', "=", "o2"), lambda n: n % 4 == 2),
    (And((Compare("n", "<", 50), Compare("payload.ok", "=", True))), lambda n: n < 50 and n % 2 == 0),
    (Or((Compare("n", "<", 5), Compare("n", ">=", 290))), lambda n: n < 5 or n >= 290),
    (
        Not(Or((Compare("n", "<", 5), And((Exists("payload.lang"), Compare("payload.ok", "=", False)))))),
        lambda n: not (n < 5 or (n % 7 and n % 2)),
    ),
]


class TestFilters:
    def test_a_filtered_search_is_a_search_of_what_passes(self, store):
        filled(store)
        vectors_PE, query_E = vectors(300), vectors(1, seed=9)[0]
        for filter, passes in FILTERS:
            passing = [n for n in range(300) if passes(n)]
            assert store.count(filter) == len(passing), filter
            found = store.search([StoreQuery(query_E), StoreQuery(query_E, terms(4)[3])], limit=10, filter=filter)
            nearest = sorted(passing, key=lambda n: -float(vectors_PE[n] @ query_E))
            assert numbers(found[0]) == nearest[:10], filter
            assert set(numbers(found[1])) <= set(passing) and len(found[1]) == min(10, len(passing)), filter

    def test_facets_count_what_passes(self, store):
        filled(store)
        facets = dict(store.facet("payload.lang", filter=Compare("n", "<", 100)))
        assert facets == {lang: sum(lang in languages(n) for n in range(100)) for lang in [*LANGUAGES, "la"]}
        assert dict(store.facet("payload.ok")) == {True: 150, False: 150}
        assert len(store.facet("n", limit=3)) == 3

    def test_fields_added_later(self, opened):
        store = filled(opened(Schema({"": DIM, "query": 4}, lexical=True)), 30)
        store.add_fields({"payload.lang": "keyword", "n": "int"})
        store.add_fields({"payload.lang": "keyword"})
        assert dict(store.facet("payload.lang"))["de"] == sum("de" in languages(n) for n in range(30))
        assert store.schema.fields == {"payload.lang": "keyword", "n": "int"}


class TestStoredVectors:
    def test_by_id(self, store):
        filled(store, 20)
        store.upsert([Point(id_of(99), {})], {"": vectors(1, seed=4)})
        found = store.vectors([id_of(3), id_of(99), id_of(1234)])
        assert found.keys() == {id_of(3), id_of(99)}
        np.testing.assert_array_equal(found[id_of(3)], vectors(20)[3])
        assert store.vectors([id_of(3), id_of(99)], name="query").keys() == {id_of(3)}
        assert store.vectors([]) == {}

    def test_scroll_without_vectors(self, store):
        filled(store, 10)
        page = store.scroll(limit=100, vectors=False)
        assert {stored.point.payload["n"] for stored in page.points} == set(range(10))
        assert all(stored.dense == {} and stored.sparse is None for stored in page.points)

    @pytest.mark.parametrize("limit", [7, 1000])
    def test_scroll_goes_once_through_everything(self, store, limit):
        filled(store, 50)
        store.upsert([Point(id_of(50), {"n": 50})], {"": vectors(1, seed=4)})
        found: dict[int, StoredPoint] = {}
        start: str | None = None
        while True:
            page = store.scroll(limit=limit, start=start)
            assert len(page.points) <= limit
            found |= {stored.point.payload["n"]: stored for stored in page.points}
            if (start := page.next) is None:
                break
        assert sorted(found) == list(range(51))
        for n in range(50):
            assert found[n].point == points(50)[n]
            np.testing.assert_array_equal(found[n].dense[""], vectors(50)[n])
            np.testing.assert_array_equal(found[n].dense["query"], vectors(50, dim=4)[n])
            expected = terms(50)[n]
            if len(expected.terms_T):
                np.testing.assert_array_equal(found[n].sparse.terms_T, expected.terms_T)
                np.testing.assert_array_equal(found[n].sparse.weights_T, expected.weights_T)
            else:
                assert found[n].sparse is None
        assert list(found[50].dense) == [""]


class TestUnsound:
    """What would harm an engine, or stay in it for good, does not get there."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
    def test_vectors_are_found(self, value):
        vectors_PE = vectors(5)
        assert first_bad_vector(vectors_PE) is None
        vectors_PE[3] *= value
        assert first_bad_vector(vectors_PE) == 3

    def test_nothing_of_it_is_stored(self, store):
        for dense, lexical in [
            ({"": vectors(1) * np.nan}, None),
            ({"": vectors(1)[:, :4]}, None),
            ({"unknown": vectors(1)}, None),
            ({"": vectors(1)}, sparse({1: 1.0}, {2: 1.0})),
        ]:
            with pytest.raises(AssertionError):
                store.upsert(points(1), dense, sparse=lexical)
        for query in [StoreQuery(vectors(1)[0] * 2), StoreQuery()]:
            with pytest.raises(AssertionError):
                store.search([query], limit=1)
        with pytest.raises(AssertionError):
            store.search(asked(vectors(1)), limit=1, name="unknown")
        assert store.count() == 0

    def test_a_dense_store_has_no_terms(self, opened):
        store = opened(Schema({"": DIM}))
        with pytest.raises(AssertionError):
            store.upsert(points(1), {"": vectors(1)}, sparse=terms(1))
        with pytest.raises(AssertionError):
            store.search([StoreQuery(sparse=terms(2)[1])], limit=1)


def languages(n: int) -> list[str]:
    value = payload(n)["lang"]
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def bm25(query: Sparse, stored: list[Sparse]) -> dict[int, float]:
    """Score by point of what a sparse query finds; the weights' inverse document frequency is Lucene's."""
    scores: dict[int, float] = {}
    count = sum(len(one.terms_T) > 0 for one in stored)
    for term in query.terms_T:
        having = [n for n, one in enumerate(stored) if term in one.terms_T]
        idf = np.log((count - len(having) + 0.5) / (len(having) + 0.5) + 1)
        for n in having:
            weight = stored[n].weights_T[stored[n].terms_T == term].item()
            scores[n] = scores.get(n, 0.0) + float(idf) * weight
    return scores


def fused(rankings: list[list[Match]], fusion: Fusion) -> dict[int, float]:
    """Reciprocal rank fusion with the mean place of equal scores, written down plainly.

    `rankings`: twice as deep as the fusion, or all there is.
    """
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, fusion.weights, strict=True):
        for match in ranking:
            equals = [
                p for p, other in enumerate(ranking, 1) if isclose(other.score, match.score, rel_tol=1e-5, abs_tol=1e-6)
            ]
            is_cut = len(ranking) == 2 * fusion.depth and equals[-1] == len(ranking)
            if equals[0] <= fusion.depth and not is_cut:
                n = match.payload["n"]
                scores[n] = scores.get(n, 0.0) + 1 / (np.mean(equals) / weight + fusion.k - 1)
    return scores
