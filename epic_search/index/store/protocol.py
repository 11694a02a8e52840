"""What the index asks of a vector store, and the checks every vector passes before it gets there.

Shapes: P points, Q queries, E dimensions of a vector, T terms of a sparse vector.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from epic_search.index.filters import FieldType, Filter

UNIT_TOLERANCE = 1e-3
PAGE = 512  # points read at once
LEXICAL = "bm25"  # the name of the sparse vector
PASSAGE_FIELDS = ("id", "passage")  # of the payload of every passage
SHORT = "short"  # the name of the vectors of the first stage
FACET_TYPES: tuple[FieldType | None, ...] = ("keyword", "int", "bool")


@dataclass(frozen=True, slots=True)
class Point:
    """A stored point without its vectors. `id` is a UUID; the payload is JSON."""

    id: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A sparse vector: ascending term ids (uint32) and as many finite weights (float32); both may be empty.

    One that is not so cannot be made: an engine that is given it may never open its files again.
    """

    terms_T: np.ndarray
    weights_T: np.ndarray

    def __post_init__(self) -> None:
        assert self.terms_T.dtype == np.uint32 and self.weights_T.dtype == np.float32, (self.terms_T, self.weights_T)
        assert self.terms_T.ndim == 1 and self.terms_T.shape == self.weights_T.shape, (self.terms_T, self.weights_T)
        assert np.all(self.terms_T[1:] > self.terms_T[:-1]), self.terms_T
        assert np.all(np.isfinite(self.weights_T)), self.weights_T


@dataclass(frozen=True, slots=True)
class Schema:
    """What the points of a store are made of.

    `dense`: vector name -> dimensions ("" is the only vector of an index made before there were names, and stays the
    name of a passage's own). `lexical`: whether there is a sparse vector, LEXICAL, too, whose terms count by their
    inverse document frequency. `fields`: path in the payload ("payload.year") -> type, for filters and facets.
    `quantize`: as what large numbers of dense vectors are searched, before the nearest are compared whole.
    `first_stage`: the first so many dimensions of the vectors called "" are searched, before the nearest are compared
    whole. The store keeps these short ones by itself, under the name SHORT, and gives them to nobody.
    """

    dense: Mapping[str, int]
    lexical: bool = False
    fields: Mapping[str, FieldType] = field(default_factory=dict)
    quantize: Literal["int8"] | None = None
    first_stage: int | None = None


@dataclass(frozen=True, slots=True)
class Fusion:
    """How two rankings become one: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009), with weights.

    A point at place r (from 1) of the first `depth` of a ranking with weight w gets 1 / (r / w + k - 1) for it, as in
    Qdrant, and the sum of both is its score. Points of equal score are all at the mean of their places. `weights`: of
    the dense and of the lexical ranking. The defaults were chosen by benchmarks/hybrid.py: with the usual k of 60, the
    first hits of a good ranking count hardly more than the others.
    """

    depth: int = 100
    k: int = 2
    weights: tuple[float, float] = (2.0, 1.0)


RRF = Fusion()


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """The lexical ranking of one query, which a store's `ahead` has begun to make.

    `depth`: of the fusion that it is for. `rankings`: gives those of all queries that were asked together, in a form
    that only that store knows, and raises what `search` raises. `place`: of this query among them.
    """

    depth: int
    place: int
    rankings: Callable[[], Sequence[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class StoreQuery:
    """What is near to a unit vector, to a sparse vector, or, with both, to either (see Fusion).

    `leg`: the ranking by the sparse one, where the store made it `ahead`.
    """

    dense_E: np.ndarray | None = None
    sparse: Sparse | None = None
    leg: Leg | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A point found. `score`: the cosine of a dense query, the BM25 score of a sparse one, or the fused score."""

    id: str
    score: float
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class StoredPoint:
    """A point with all its vectors: name -> float32 (E,)."""

    point: Point
    dense: Mapping[str, np.ndarray]
    sparse: Sparse | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some points of a store. `next` begins the next page; None at the end."""

    points: list[StoredPoint]
    next: str | None


class VectorStore(Protocol):
    """Points with unit vectors. What `flush` returned from survives a crash of process and machine."""

    @property
    def schema(self) -> Schema:
        """What the store was opened with, and the fields added since."""

    def upsert(
        self,
        points: Sequence[Point],
        dense: Mapping[str, np.ndarray],
        *,
        sparse: Sequence[Sparse] | None = None,
        only_known: bool = False,
    ) -> None:
        """Store points, replacing those of the same id; with `only_known`, leave out those of an id that is not stored.

        `dense`: float32 unit vectors (P, E) for some or all of the schema's names; without those of a name, the
        points have no such vector. `sparse`: one for each point; an empty one is no vector.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points; an id that is not stored is no error."""

    def flush(self) -> None:
        """Bring everything so far to the disk."""

    def count(self, filter: Filter | None = None) -> int:
        """How many points are stored and pass the filter: an exact number."""

    def search(
        self,
        queries: Sequence[StoreQuery],
        *,
        limit: int,
        name: str = "",
        filter: Filter | None = None,
        fields: Sequence[str] | None = None,
        fusion: Fusion = RRF,
    ) -> list[list[Match]]:
        """For each query the `limit` best of the points that pass the filter, best first.

        Dense queries are compared with the vectors called `name`. A sparse one finds the points that have one of its
        terms, and nothing when it has none. `fields`: what of their payload matches carry (None: all of it).
        """

    def ahead(
        self, queries: Sequence[Sparse | None], *, filter: Filter | None = None, fusion: Fusion = RRF
    ) -> list[Leg | None]:
        """Let the store begin with what fused searches can do before there are vectors; returns at once.

        A `search` with the same filter finds with a query's leg what it finds without, only sooner. Nobody has to use
        it. None where there is no query, and where the store is busy or has nothing to gain.
        """

    def vectors(self, ids: Sequence[str], *, name: str = "") -> dict[str, np.ndarray]:
        """The stored vectors (E,) called `name` by point id; ids that have none are left out."""

    def scroll(self, *, limit: int, start: str | None = None, vectors: bool = True) -> Page:
        """`limit` points from `start` on (None: from the first), in an order that stays; with their vectors or not."""

    def facet(self, field: str, *, filter: Filter | None = None, limit: int = 10) -> list[tuple[str | int | bool, int]]:
        """The commonest values of a keyword, int or bool field of the schema, each with the exact number of points."""

    def add_fields(self, fields: Mapping[str, FieldType]) -> None:
        """Make these fields fast to filter by, and possible to facet; those that are so already stay."""

    def optimize(self) -> None:
        """Build the search graph where there are enough points to need one, and clear out deleted ones."""

    def close(self) -> None:
        """Let go of the store's files."""


def shortened(vectors_NE: np.ndarray, width: int) -> np.ndarray:
    """(N, width) unit-length vectors: the first dimensions of longer ones (see `encoder.matryoshka`)."""
    short_NE = vectors_NE[:, :width]
    return short_NE / np.maximum(np.linalg.norm(short_NE, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def pages_of(
    store: VectorStore, *, having: Sequence[str] = (), limit: int | None = None, vectors: bool = True
) -> Iterator[list[StoredPoint]]:
    """All points of a store, `limit` (None: PAGE) at a time, in the order of their ids; with their vectors or not.

    `having`: without the points whose payload lacks one of these fields, which others put there (see `is_ours`).
    """
    start: str | None = None
    while True:
        page = store.scroll(limit=limit or PAGE, start=start, vectors=vectors)
        if points := [stored for stored in page.points if is_ours(stored.point.payload, having)]:
            yield points
        if (start := page.next) is None:
            return


def is_ours(payload: Mapping[str, Any], having: Sequence[str] = PASSAGE_FIELDS) -> bool:
    """Whether a point's payload has these fields, as those of a store's owner do.

    A server lets anybody put points into a collection. Who reads passes over them, `indexes verify` tells of them, and
    only `indexes repair`, which asks first, removes them.
    """
    return all(field in payload for field in having)


def first_bad_vector(vectors_PE: np.ndarray) -> int | None:
    """The row of the first vector that is not finite or not of unit length; None when all are sound."""
    norms_P = np.linalg.norm(vectors_PE, axis=1)
    bad_P = ~(np.abs(norms_P - 1.0) <= UNIT_TOLERANCE)  # also true for NaN
    return int(np.argmax(bad_P)) if bad_P.any() else None


def check_vectors(
    schema: Schema, points: int, dense: Mapping[str, np.ndarray], sparse: Sequence[Sparse] | None
) -> None:
    """Assert that vectors are what the schema says: engines keep NaN, and are harmed by unknown names."""
    for name, vectors_PE in dense.items():
        assert name in schema.dense, (name, list(schema.dense))
        assert vectors_PE.shape == (points, schema.dense[name]), (name, vectors_PE.shape, points, schema.dense)
        assert first_bad_vector(vectors_PE) is None, (name, first_bad_vector(vectors_PE))
    assert sparse is None or (schema.lexical and len(sparse) == points), (schema.lexical, len(sparse), points)


def check_queries(schema: Schema, queries: Sequence[StoreQuery], name: str) -> None:
    """Assert that each query can be asked of a store with this schema."""
    for query in queries:
        assert query.dense_E is not None or query.sparse is not None, query
        if query.dense_E is not None:
            check_vectors(schema, 1, {name: query.dense_E[None]}, None)
        assert query.sparse is None or schema.lexical, schema
        assert query.leg is None or (query.dense_E is not None and query.sparse is not None), query
