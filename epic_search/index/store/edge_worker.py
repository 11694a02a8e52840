"""The process in which Qdrant's engine runs: requests come in on stdin, answers go out on stdout.

It is a process of its own because the engine holds Python's global lock while it builds its search graph, and
because its process dies of SIGBUS when the disk is full. Run as a script, by path, and importing nothing else
of this package, it starts in a tenth of a second; fusion.py, which imports nothing either, is run by path, too.

A frame is the two lengths, a JSON header and a blob: the raw values of the arrays that the header lists.
"""

import ctypes
import json
import runpy
import signal
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import UUID

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
LENGTHS = struct.Struct("<IQ")
# How far a search looks must not depend on how much of its ranking is asked for, or pages of it would not fit together.
# So it depends on the tier of what is asked for: up to 256, up to 1,024 and so on. The search graph is searched as
# widely as that; of 100,000 vectors of 576 dimensions it so gives the true top 10 in 1 ms.
TIER, NEXT_TIER = 256, 4
# A segment of up to this much of vectors (KiB) is searched by an exact scan, of about 5 ms; a larger one gets a search
# graph, which is less exact. A search must stay short beside the encoding of its query.
GRAPH_ABOVE_KIB = 32 * 1024
LEXICAL, SHORT = "bm25", "short"
# Codes of one byte a number, and short vectors, find so many times the tier, which are compared with the whole vectors.
OVERSAMPLING = 2.0
TYPES = {"keyword": "Keyword", "int": "Integer", "float": "Float", "bool": "Bool", "datetime": "Datetime"}


def write_frame(stream: BinaryIO, header: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
    """Write one frame and flush. `arrays`: contiguous buffers of float32 ("f"), float64 ("d"), uint32 or bytes."""
    views = [memoryview(values) for values in arrays]
    listed = header | {"arrays": [(view.format, view.nbytes) for view in views]}
    text = json.dumps(listed, ensure_ascii=False).encode("utf-8")
    stream.write(LENGTHS.pack(len(text), sum(view.nbytes for view in views)))
    stream.write(text)
    for view in views:
        stream.write(view)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], list[memoryview]] | None:
    """Read one frame: header and flat arrays; None when the other side has gone."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_length, blob_length = LENGTHS.unpack(lengths)
    text = stream.read(header_length)
    blob = memoryview(stream.read(blob_length))
    if len(text) < header_length or len(blob) < blob_length:
        return None
    header = json.loads(text)
    arrays, first = [], 0
    for kind, size in header.pop("arrays"):
        arrays.append(blob[first : first + size].cast(kind))
        first += size
    return header, arrays


def tier(limit: int) -> int:
    """The least tier that `limit` is in."""
    most = TIER
    while most < limit:
        most *= NEXT_TIER
    return most


def candidates(limit: int) -> int:
    """How many are compared with the whole vectors, where others are searched, for the `limit` best."""
    return int(OVERSAMPLING * tier(limit))


def oversampling(limit: int) -> float:
    """How many times `limit` the candidates are; an engine multiplies, and cuts what is behind the point."""
    return (candidates(limit) + 0.5) / limit


class WithArrays(NamedTuple):
    """An answer of more than JSON."""

    result: Any
    arrays: Sequence[Any]


class Engine:
    """One engine shard; each public method is a request."""

    def __init__(self) -> None:
        import qdrant_edge

        self.edge: Any = qdrant_edge
        self.shard: Any = None
        self.is_quantized = False
        self.first_stage: int | None = None
        self.fusion = runpy.run_path(str(Path(__file__).with_name("fusion.py")))

    def open(
        self,
        path: str,
        dense: dict[str, int],
        lexical: bool,
        quantize: str | None,
        first_stage: int | None,
        create: bool,
    ) -> None:
        self.is_quantized = quantize is not None
        self.first_stage = first_stage
        if not create:
            self.shard = self.edge.EdgeShard.load(path)
            return
        Path(path).mkdir(parents=True, exist_ok=True)
        # The vectors have unit length; Dot keeps them bit for bit, and Cosine would normalise them again.
        dot = self.edge.Distance.Dot
        codes = None
        if quantize == "int8":
            codes = self.edge.ScalarQuantizationConfig(self.edge.ScalarType.Int8, memory=self.edge.Memory.Pinned)
        vectors = {name: self.edge.EdgeVectorParams(size=dim, distance=dot) for name, dim in dense.items()}
        if first_stage is not None:
            vectors[SHORT] = self.edge.EdgeVectorParams(size=first_stage, distance=dot)
            # The whole vectors are only compared with, and need no search graph.
            no_graph = self.edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
            vectors[""] = self.edge.EdgeVectorParams(size=dense[""], distance=dot, hnsw_config=no_graph)
        config = self.edge.EdgeConfig(
            vectors=vectors,
            sparse_vectors={LEXICAL: self.edge.EdgeSparseVectorParams(modifier=self.edge.Modifier.Idf)}
            if lexical
            else None,
            quantization_config=codes,
            optimizers=self.edge.EdgeOptimizersConfig(indexing_threshold=GRAPH_ABOVE_KIB),
        )
        self.shard = self.edge.EdgeShard.create(path, config)

    def upsert(self, points: list[list[Any]], names: list[str], only_known: bool, *, arrays: list[memoryview]) -> None:
        rows = [_rows(values, len(points)) for values in arrays[: len(names)]]
        sparse = self._sparse(arrays[len(names) :]) if len(arrays) > len(names) else None
        stored = []
        for id, payload in points:
            vectors = {name: next(of_name).tolist() for name, of_name in zip(names, rows, strict=True)}
            terms = next(sparse) if sparse is not None else None
            if terms is not None:
                vectors[LEXICAL] = terms
            stored.append(self.edge.Point(id, vectors, payload))
        mode = self.edge.UpdateMode.UpdateOnly if only_known else None
        self.shard.update(self.edge.UpdateOperation.upsert_points(stored, update_mode=mode))

    def delete(self, ids: list[str]) -> None:
        self.shard.update(self.edge.UpdateOperation.delete_points(ids))

    def flush(self) -> None:
        self.shard.flush()

    def count(self, filter: dict[str, Any] | None) -> int:
        return int(self.shard.count(self.edge.CountRequest(exact=True, filter=self._filter(filter))))

    def ahead(self, filter: dict[str, Any] | None, depth: int, *, arrays: list[memoryview]) -> WithArrays:
        """The lexical legs of fused searches: how long each is, and the ids (16 bytes each) and scores of all."""
        condition, reach = self._filter(filter), self.fusion["REACH"] * depth
        requests = [
            self.edge.QueryRequest(**self._lexical_leg(terms), filter=condition, limit=reach, with_payload=False)
            for terms in self._sparse(arrays)
        ]
        legs = self.shard.query_batch(self.edge.QueryBatchRequest(requests))
        ids = b"".join(point.id.bytes for leg in legs for point in leg)
        return WithArrays([len(leg) for leg in legs], [ids, array("d", (point.score for leg in legs for point in leg))])

    def search(
        self,
        queries: list[tuple[bool, bool, int | None]],
        limit: int,
        name: str,
        filter: dict[str, Any] | None,
        fields: list[str] | None,
        fusion: dict[str, Any],
        *,
        arrays: list[memoryview],
    ) -> list[list[tuple[str, float, dict[str, Any]]]]:
        """`queries`: whether each has a vector, whether it has terms, and how long the leg is that it has instead."""
        edge, condition = self.edge, self._filter(filter)
        dense = _rows(arrays[0], sum(has_dense for has_dense, _, _ in queries))
        sparse, known = self._sparse(arrays[1:4]), _ranked(*arrays[4:])
        payload = True if fields is None else edge.PayloadSelector.Include(fields)
        reach = self.fusion["REACH"] * fusion["depth"]
        ahead = [[] if size is None else [list(islice(known, size))] for _, _, size in queries]
        requests, places = [], []
        for place, (has_dense, has_sparse, _) in enumerate(queries):
            vector = next(dense) if has_dense else None
            terms = next(sparse) if has_sparse else None  # None, too, for a sparse query without a term
            is_fused = vector is not None and (terms is not None or len(ahead[place]) > 0)
            most = reach if is_fused else limit
            legs = [] if vector is None else [self._dense_leg(vector, name, most, condition)]
            legs += [] if terms is None else [self._lexical_leg(terms)]
            options = {"filter": condition, "limit": most, "with_payload": False if is_fused else payload}
            requests += [edge.QueryRequest(**leg, **options) for leg in legs]
            places += [place] * len(legs)
        rankings: list[list[Any]] = [[] for _ in queries]
        for place, points in zip(places, self.shard.query_batch(edge.QueryBatchRequest(requests)), strict=True):
            rankings[place].append(points)
        return [
            self._fused([*map(_ranking, legs), *lexical], limit, payload, fusion)
            if len(legs) + len(lexical) > 1
            else [(str(point.id), point.score, point.payload) for points in legs for point in points]
            for legs, lexical in zip(rankings, ahead, strict=True)
        ]

    def _fused(
        self, rankings: list[list[tuple[int, float]]], limit: int, payload: Any, fusion: dict[str, Any]
    ) -> list[tuple[str, float, dict[str, Any]]]:
        best = [(UUID(int=id), score) for id, score in self.fusion["fuse"](rankings, **fusion)[:limit]]
        records = self.shard.retrieve([id for id, _ in best], with_payload=payload, with_vector=False)
        payloads = {record.id: record.payload for record in records}
        # A leg that was asked for ahead may hold a point that is gone by now.
        return [(str(id), score, payloads[id]) for id, score in best if id in payloads]

    def _lexical_leg(self, terms: Any) -> dict[str, Any]:
        return {"query": self.edge.Query.Nearest(terms, using=LEXICAL)}

    def _dense_leg(self, vector: memoryview, name: str, limit: int, filter: Any) -> dict[str, Any]:
        """A search for the nearest: by the short vectors first, where there are such."""
        nearest = self.edge.Query.Nearest
        leg = {"query": nearest(vector, using=name), "params": self._params(tier(limit), oversampling(limit))}
        if self.first_stage is not None and name == "":
            most = candidates(limit)
            short, params = nearest(vector[: self.first_stage], using=SHORT), self._params(most, OVERSAMPLING)
            leg["prefetches"] = [self.edge.Prefetch(query=short, limit=most, filter=filter, params=params)]
        return leg

    def _params(self, ef: int, times: float) -> Any:
        codes = self.edge.QuantizationSearchParams(rescore=True, oversampling=times)
        return self.edge.SearchParams(hnsw_ef=ef, quantization=codes if self.is_quantized else None)

    def vectors(self, ids: list[str], name: str) -> WithArrays:
        records = self.shard.retrieve(ids, with_payload=False, with_vector=[name])
        having = [(str(record.id), named[name]) for record in records if name in (named := _named(record.vector))]
        return WithArrays([id for id, _ in having], [array("f", (x for _, vector in having for x in vector))])

    def scroll(self, start: str | None, limit: int, vectors: bool) -> WithArrays:
        request = self.edge.ScrollRequest(offset=start, limit=limit, with_payload=True, with_vector=vectors)
        records, following = self.shard.scroll(request)
        points, arrays = [], []
        for record in records:
            named = _named(record.vector) if vectors else {}
            sparse = named.pop(LEXICAL, None)
            named.pop(SHORT, None)
            points.append((str(record.id), record.payload, list(named), sparse is not None))
            arrays += [array("f", vector) for vector in named.values()]
            if sparse is not None:
                arrays += [array("I", sparse.indices), array("f", sparse.values)]
        return WithArrays((points, None if following is None else str(following)), arrays)

    def facet(self, field: str, filter: dict[str, Any] | None, limit: int) -> list[tuple[Any, int]]:
        request = self.edge.FacetRequest(field, limit=limit, exact=True, filter=self._filter(filter))
        return [(hit.value, hit.count) for hit in self.shard.facet(request)]

    def add_fields(self, fields: dict[str, str]) -> None:
        there = self.shard.info().payload_schema
        for field, kind in fields.items():
            wanted = getattr(self.edge.PayloadSchemaType, TYPES[kind])
            if field not in there or there[field].data_type != wanted:
                self.shard.update(self.edge.UpdateOperation.create_field_index(field, wanted))

    def optimize(self) -> None:
        # This can take minutes, in which the end of the parent would not be noticed and the index stay locked.
        _die_with_parent(signal.SIGKILL)
        self.shard.optimize()
        self.shard.flush()
        _die_with_parent(0)

    def _sparse(self, arrays: list[memoryview]) -> Iterator[Any]:
        """Sparse vectors from (lengths, terms, weights); None for an empty one."""
        lengths, terms, weights = arrays
        first = 0
        for length in lengths:
            last = first + length
            yield self.edge.SparseVector(terms[first:last].tolist(), weights[first:last].tolist()) if length else None
            first = last

    def _filter(self, filter: dict[str, Any] | None) -> Any:
        """The engine's form of a filter in Qdrant's JSON."""
        if filter is None:
            return None
        return self.edge.Filter(**{kind: [self._condition(part) for part in parts] for kind, parts in filter.items()})

    def _condition(self, condition: dict[str, Any]) -> Any:
        edge = self.edge
        match condition:
            case {"key": key, "match": {"any": values}}:
                return edge.FieldCondition(key, match=edge.MatchAny(values))
            case {"key": key, "match": {"value": bool() as value}}:
                import numpy as np  # the engine takes Python's True for the integer 1, and numpy's for what it is

                return edge.FieldCondition(key, match=edge.MatchValue(np.bool_(value)))
            case {"key": key, "match": {"value": value}}:
                return edge.FieldCondition(key, match=edge.MatchValue(value))
            case {"key": key, "range": bounds}:
                is_date = any(isinstance(bound, str) for bound in bounds.values())
                return edge.FieldCondition(key, range=(edge.RangeDateTime if is_date else edge.RangeFloat)(**bounds))
            case {"is_empty": {"key": key}}:
                return edge.IsEmptyCondition(key)
            case _:
                return self._filter(condition)


def _rows(values: memoryview, count: int) -> Iterator[memoryview]:
    """The rows of a flat array."""
    width = len(values) // count if count else 0
    return (values[row * width : (row + 1) * width] for row in range(count))


def _ranking(points: list[Any]) -> list[tuple[int, float]]:
    """Ids and scores. The integers of UUIDs have their order, and are compared in a fraction of the time."""
    return [(point.id.int, point.score) for point in points]


def _ranked(ids: memoryview, scores: memoryview) -> Iterator[tuple[int, float]]:
    """The same from two flat arrays."""
    return ((int.from_bytes(ids[16 * row : 16 * row + 16], "big"), score) for row, score in enumerate(scores))


def _named(vectors: Any) -> dict[str, Any]:
    """A point's vectors by name: the engine gives an unnamed one alone."""
    return vectors if isinstance(vectors, dict) else {"": vectors}


def _die_with_parent(death: int) -> None:
    """Ask the kernel for a signal at the parent's death (0: none). Linux only; elsewhere the work is finished."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(death))


REQUESTS_WITH_ARRAYS = ("upsert", "ahead", "search")


def main() -> None:
    """Answer requests until stdin closes, which it does when the parent ends in whatever way."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    engine = Engine()
    while (frame := read_frame(requests)) is not None:
        header, sent = frame
        name = header.pop("request")
        try:
            if name in REQUESTS_WITH_ARRAYS:
                header["arrays"] = sent
            result = getattr(engine, name)(**header)
        except BaseException as error:
            # The engine's panics derive from BaseException, and after one the shard cannot be trusted.
            write_frame(answers, {"error": str(error), "type": type(error).__name__})
            if not isinstance(error, Exception):
                return
        else:
            result, arrays = result if isinstance(result, WithArrays) else (result, ())
            write_frame(answers, {"result": result}, arrays)
    if engine.shard is not None:
        engine.shard.close()


if __name__ == "__main__":
    main()
