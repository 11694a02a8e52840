"""A collection of a Qdrant server as a vector store."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from epic_search.index.filters import FieldType, Filter, as_qdrant
from epic_search.index.store.connection import Connection, ServerError
from epic_search.index.store.edge_worker import OVERSAMPLING, candidates, oversampling, tier
from epic_search.index.store.fusion import REACH, fuse
from epic_search.index.store.protocol import (
    LEXICAL,
    RRF,
    SHORT,
    Fusion,
    Leg,
    Match,
    Page,
    Point,
    Schema,
    Sparse,
    StoredPoint,
    StoreQuery,
    check_queries,
    check_vectors,
    shortened,
)

if TYPE_CHECKING:
    from qdrant_client import models

T = TypeVar("T")

REQUEST_POINTS = 256
REQUEST_BYTES = 8 * 2**20  # half of what a request may have, for sizes are estimated
NUMBER_BYTES = 22  # a float32 in JSON, with its comma
DELETE_POINTS = 1000
PAGE_POINTS = 1000
WHOLE = "whole"  # what the vectors called "" are called on a server where they are not the only ones

FIELD_SCHEMAS: dict[FieldType, str] = {
    "keyword": "keyword",
    "int": "integer",
    "float": "float",
    "bool": "bool",
    "datetime": "datetime",
}


class ServerStore:
    """A `VectorStore` in a collection. Every method raises ServerError, a UserError, when the server fails for good."""

    def __init__(
        self,
        connection: Connection,
        collection: str,
        *,
        schema: Schema,
        moved: Callable[[], str] | None = None,
    ) -> None:
        """Use a collection that exists. `moved` says which one to use instead once it is gone."""
        self.collection = collection
        self._connection = connection
        self._schema = schema
        self._moved = moved

    @property
    def schema(self) -> Schema:
        """See VectorStore."""
        return self._schema

    def upsert(
        self,
        points: Sequence[Point],
        dense: Mapping[str, np.ndarray],
        *,
        sparse: Sequence[Sparse] | None = None,
        only_known: bool = False,
    ) -> None:
        """See VectorStore. Returns when the server has the points."""
        check_vectors(self._schema, len(points), dense, sparse)
        named = {name_there(name, self._schema): vectors_PE for name, vectors_PE in dense.items()}
        if self._schema.first_stage is not None and "" in dense:
            named[SHORT] = shortened(dense[""], self._schema.first_stage)
        numbers = sum(vectors_PE.shape[1] for vectors_PE in named.values())
        batch: list[models.PointStruct] = []
        size = 0
        for row, point in enumerate(points):
            length = NUMBER_BYTES * numbers + len(json.dumps(point.payload))
            if sparse is not None:
                length += 2 * NUMBER_BYTES * len(sparse[row].terms_T)
            if batch and (len(batch) == REQUEST_POINTS or size + length > REQUEST_BYTES):
                self._upsert(batch, only_known=only_known)
                batch, size = [], 0
            batch.append(
                _point_struct(point, {name: v[row] for name, v in named.items()}, sparse[row] if sparse else None)
            )
            size += length
        if batch:
            self._upsert(batch, only_known=only_known)

    def _upsert(self, batch: "list[models.PointStruct]", *, only_known: bool) -> None:
        from qdrant_client import models

        mode = models.UpdateMode.UPDATE_ONLY if only_known else None
        try:
            self._ask(lambda client: client.upsert(self.collection, batch, wait=True, update_mode=mode))
        except ServerError as error:
            if error.failure.kind != "too large" or len(batch) == 1:
                raise
            half = len(batch) // 2
            self._upsert(batch[:half], only_known=only_known)
            self._upsert(batch[half:], only_known=only_known)

    def delete(self, ids: Sequence[str]) -> None:
        """See VectorStore."""
        for first in range(0, len(ids), DELETE_POINTS):
            some = [_id_there(id) for id in ids[first : first + DELETE_POINTS]]
            self._ask(lambda client, some: client.delete(self.collection, some, wait=True), some)

    def flush(self) -> None:
        """See VectorStore. The server's log has every write that was answered."""

    def count(self, filter: Filter | None = None) -> int:
        """See VectorStore."""
        return self._ask(lambda client: client.count(self.collection, _filter(filter), exact=True)).count

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
        """See VectorStore."""
        from qdrant_client import models

        check_queries(self._schema, queries, name)
        condition, payload = _filter(filter), True if fields is None else list(fields)
        reach = REACH * fusion.depth
        places, requests = [], []
        for place, query in enumerate(queries):
            has_terms = query.sparse is not None and len(query.sparse.terms_T) > 0
            is_fused = has_terms and query.dense_E is not None
            most = reach if is_fused else limit
            legs = [] if query.dense_E is None else [self._dense_leg(query.dense_E, name, most, condition)]
            legs += [{"query": _sparse_vector(query.sparse), "using": LEXICAL}] if query.sparse and has_terms else []
            options: dict[str, Any] = {"filter": condition, "limit": most, "with_payload": not is_fused and payload}
            requests += [models.QueryRequest(**leg, **options) for leg in legs]
            places += [place] * len(legs)
        rankings: list[list[list[models.ScoredPoint]]] = [[] for _ in queries]
        if requests:
            answers = self._ask(lambda client: client.query_batch_points(self.collection, requests))
            for place, answer in zip(places, answers, strict=True):
                rankings[place].append(answer.points)
        fused = {
            place: fuse([[(str(point.id), point.score) for point in leg] for leg in legs], **asdict(fusion))[:limit]
            for place, legs in enumerate(rankings)
            if len(legs) > 1
        }
        payloads = self._payloads({id for best in fused.values() for id, _ in best}, payload)
        return [
            [Match(id, score, payloads[id]) for id, score in fused[place] if id in payloads]
            if place in fused
            else [Match(str(point.id), point.score, point.payload or {}) for points in legs for point in points]
            for place, legs in enumerate(rankings)
        ]

    def ahead(
        self, queries: Sequence[Sparse | None], *, filter: Filter | None = None, fusion: Fusion = RRF
    ) -> list[Leg | None]:
        """See VectorStore. A server searches for both at once, and a second request costs more than that takes."""
        return [None] * len(queries)

    def _dense_leg(
        self, query_E: np.ndarray, name: str, limit: int, condition: "models.Filter | None"
    ) -> dict[str, Any]:
        """A search for the nearest: by the short vectors first, where there are such."""
        from qdrant_client import models

        vector, params = query_E.tolist(), self._search_params(tier(limit), oversampling(limit))
        leg = {"query": vector, "using": name_there(name, self._schema) or None, "params": params}
        if (width := self._schema.first_stage) is not None and name == "":
            most = candidates(limit)
            params = self._search_params(most, OVERSAMPLING)
            leg["prefetch"] = models.Prefetch(
                query=vector[:width], using=SHORT, params=params, filter=condition, limit=most
            )
        return leg

    def _payloads(self, ids: set[str], payload: bool | list[str]) -> dict[str, dict[str, Any]]:
        """The payloads of points by id; one that has just been deleted is left out."""
        there = [_id_there(id) for id in ids]
        if not there:
            return {}
        records = self._ask(
            lambda client: client.retrieve(self.collection, there, with_payload=payload, with_vectors=False)
        )
        return {str(record.id): record.payload or {} for record in records}

    def _search_params(self, ef: int, times: float) -> "models.SearchParams":
        from qdrant_client import models

        rescore = models.QuantizationSearchParams(rescore=True, oversampling=times)
        return models.SearchParams(hnsw_ef=ef, quantization=rescore if self._schema.quantize is not None else None)

    def vectors(self, ids: Sequence[str], *, name: str = "") -> dict[str, np.ndarray]:
        """See VectorStore."""
        found = {}
        for first in range(0, len(ids), REQUEST_POINTS):
            some = list(ids[first : first + REQUEST_POINTS])
            records = self._ask(
                lambda client, some: client.retrieve(
                    self.collection, some, with_payload=False, with_vectors=self._selector(name)
                ),
                some,
            )
            for record in records:
                dense, _ = _vectors(record.vector, self._schema)
                if name in dense:
                    found[str(record.id)] = dense[name]
        return found

    def _selector(self, name: str) -> bool | list[str]:
        return [name_there(name, self._schema)] if has_names(self._schema) or self._schema.lexical else True

    def scroll(self, *, limit: int, start: str | None = None, vectors: bool = True) -> Page:
        """See VectorStore."""
        offset = None if start is None else _id_there(start)
        records, after = self._ask(
            lambda client: client.scroll(
                self.collection, limit=limit, offset=offset, with_payload=True, with_vectors=vectors
            )
        )
        points = []
        for record in records:
            dense, sparse = _vectors(record.vector, self._schema)
            points.append(StoredPoint(Point(str(record.id), record.payload or {}), dense, sparse))
        return Page(points, None if after is None else str(after))

    def points(self, fields: Sequence[str], *, having: tuple[str, Sequence[str]] | None = None) -> Iterator[Point]:
        """All points with these fields of their payload; `having`: those whose field has one of the values."""
        from qdrant_client import models

        condition = None
        if having is not None:
            key, values = having
            match = models.MatchAny(any=list(values))
            condition = models.Filter(must=[models.FieldCondition(key=key, match=match)])
        start: Any = None
        while True:
            records, start = self._ask(
                lambda client, start: client.scroll(
                    self.collection,
                    scroll_filter=condition,
                    limit=PAGE_POINTS,
                    offset=start,
                    with_payload=list(fields),
                    with_vectors=False,
                ),
                start,
            )
            for record in records:
                yield Point(str(record.id), record.payload or {})
            if start is None:
                return

    def having(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are stored."""
        records = self._ask(
            lambda client: client.retrieve(self.collection, list(ids), with_payload=False, with_vectors=False)
        )
        return {str(record.id) for record in records}

    def facet(self, field: str, *, filter: Filter | None = None, limit: int = 10) -> list[tuple[str | int | bool, int]]:
        """See VectorStore."""
        answer = self._ask(
            lambda client: client.facet(self.collection, field, facet_filter=_filter(filter), limit=limit, exact=True)
        )
        return [(hit.value, hit.count) for hit in answer.hits]

    def add_fields(self, fields: Mapping[str, FieldType]) -> None:
        """See VectorStore."""
        known = self._ask(lambda client: client.get_collection(self.collection)).payload_schema
        for field, kind in fields.items():
            schema = FIELD_SCHEMAS[kind]
            if field in known and known[field].data_type.value == schema:
                continue
            self._ask(
                lambda client, field, schema: client.create_payload_index(
                    self.collection, field, field_schema=schema, wait=True
                ),
                field,
                schema,
            )
        self._schema = replace(self._schema, fields={**self._schema.fields, **fields})

    def optimize(self) -> None:
        """See VectorStore. The server does this by itself, all the time."""

    def close(self) -> None:
        """See VectorStore. The connection is its owner's to close."""

    def _ask(self, request: Callable[..., T], *values: Any) -> T:
        """The answer to `request(client, *values)`, which must look up `self.collection` itself."""
        try:
            return self._connection(lambda client: request(client, *values))
        except ServerError as error:
            if error.failure.kind != "missing" or self._moved is None:
                raise
            self.collection = self._moved()
            return self._connection(lambda client: request(client, *values))


def _filter(filter: Filter | None) -> "models.Filter | None":
    from qdrant_client import models

    return None if filter is None else models.Filter.model_validate(as_qdrant(filter))


def _id_there(id: str) -> str | int:
    """An id as the server has it: those of points that others put there may be numbers."""
    return int(id) if id.isdecimal() else id


def _point_struct(point: Point, dense: Mapping[str, np.ndarray], sparse: Sparse | None) -> "models.PointStruct":
    from qdrant_client import models

    vector: dict[str, Any] = {name: vector_E.tolist() for name, vector_E in dense.items()}
    if sparse is not None and len(sparse.terms_T):
        vector[LEXICAL] = _sparse_vector(sparse)
    return models.PointStruct(id=point.id, vector=vector, payload=point.payload)


def _sparse_vector(sparse: Sparse) -> "models.SparseVector":
    from qdrant_client import models

    return models.SparseVector(indices=sparse.terms_T.tolist(), values=sparse.weights_T.tolist())


def has_names(schema: Schema) -> bool:
    """Whether dense vectors have names on the server: a single one, called "", has none."""
    return list(schema.dense) != [""] or schema.first_stage is not None


def name_there(name: str, schema: Schema) -> str:
    """What the vectors of this name are called on the server."""
    return WHOLE if name == "" and has_names(schema) else name


def _vectors(stored: Any, schema: Schema) -> tuple[dict[str, np.ndarray], Sparse | None]:
    """The vectors of a record: a list where it has one unnamed vector, else by name."""
    by_name = stored if isinstance(stored, dict) else {} if stored is None else {"": stored}
    dense, sparse = {}, None
    for name, vector in by_name.items():
        if name == LEXICAL:
            order = np.argsort(vector.indices)
            terms_T = np.asarray(vector.indices, np.uint32)[order]
            sparse = Sparse(terms_T, np.asarray(vector.values, np.float32)[order])
        elif name != SHORT or schema.first_stage is None:
            dense["" if name == name_there("", schema) else name] = np.asarray(vector, np.float32)
    return dense, sparse
