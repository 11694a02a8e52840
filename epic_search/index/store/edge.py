"""Qdrant's in-process engine, run in a child process and kept from its sharp edges."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np

from epic_search.errors import Unavailable, UserError
from epic_search.index.disk import RESERVE_BYTES, disk_full
from epic_search.index.filters import FieldType, Filter, as_qdrant
from epic_search.index.store import edge_worker
from epic_search.index.store.edge_worker import read_frame, write_frame
from epic_search.index.store.protocol import (
    FACET_TYPES,
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

UPSERT_POINTS = 256  # points in one request: bounds the memory of a document of thousands of passages
NO_POINTS = np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.float64)  # ids and scores
Frame = tuple[dict[str, Any], list[memoryview]]  # header and arrays

PANIC = "PanicException"
UNREADABLE = "Service runtime error"  # how the engine begins when a file is not as it should be
DISK_FULL = ("No space left on device", "WAL buffer size exceeds available disk space")


class StoreDamaged(Exception):
    """The engine cannot open its files."""


class EdgeStore:
    """A `VectorStore` in a folder. Raises UserError when the disk is full or the engine's process dies."""

    def __init__(self, path: Path, *, schema: Schema, create: bool, keep_open: Sequence[int] = ()) -> None:
        """Open the store in `path`, which was made with these vectors, or make an empty one there.

        The child holds the `keep_open` file descriptors too: a lock among them lasts as long as the child,
        even when this process is killed. Raises StoreDamaged when the files cannot be read.
        """
        self.path = path
        self.schema = schema
        self._one_at_a_time = threading.Lock()
        self._in_step = True
        self._unread: list[Frame] | None = None  # where the answer goes that was asked for ahead, and not read yet
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-P", edge_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            pass_fds=tuple(keep_open),
            process_group=0,  # Ctrl-C in a terminal goes to a group: the parent decides when the child ends
            env=os.environ | {"RUST_BACKTRACE": "0"},
        )
        try:
            header = {
                "path": str(path),
                "dense": dict(schema.dense),
                "lexical": schema.lexical,
                "quantize": schema.quantize,
                "first_stage": schema.first_stage,
                "create": create,
            }
            answer, _ = self._exchange({"request": "open"} | header, ())
            if "error" in answer:
                self._raise_if_disk_full(answer["error"])
                raise StoreDamaged(answer["error"])
            self.add_fields(schema.fields)
        except BaseException:
            self.close()
            raise

    def upsert(
        self,
        points: Sequence[Point],
        dense: Mapping[str, np.ndarray],
        *,
        sparse: Sequence[Sparse] | None = None,
        only_known: bool = False,
    ) -> None:
        """See VectorStore."""
        check_vectors(self.schema, len(points), dense, sparse)
        if self.schema.first_stage is not None and "" in dense:
            dense = {**dense, SHORT: shortened(dense[""], self.schema.first_stage)}
        for first in range(0, len(points), UPSERT_POINTS):
            some = slice(first, first + UPSERT_POINTS)
            arrays = [vectors_PE[some] for vectors_PE in dense.values()]
            arrays += [] if sparse is None else _joined(sparse[some])
            stored = [(point.id, point.payload) for point in points[some]]
            self._request("upsert", arrays, points=stored, names=list(dense), only_known=only_known)

    def delete(self, ids: Sequence[str]) -> None:
        """See VectorStore."""
        self._request("delete", ids=list(ids))

    def flush(self) -> None:
        """See VectorStore."""
        self._request("flush")

    def count(self, filter: Filter | None = None) -> int:
        """See VectorStore."""
        return int(self._request("count", filter=_json(filter)))

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
        check_queries(self.schema, queries, name)
        dense = [query.dense_E for query in queries if query.dense_E is not None]
        dense_QE = np.stack(dense) if dense else np.empty((0, 0), dtype=np.float32)
        legs = [query.leg if query.leg is not None and query.leg.depth == fusion.depth else None for query in queries]
        lexical = [None if leg is None else leg.rankings()[leg.place] for leg in legs]
        sparse = [query.sparse if known is None else None for query, known in zip(queries, lexical, strict=True)]
        found = self._request(
            "search",
            [
                dense_QE,
                *_joined([terms for terms in sparse if terms is not None]),
                *map(np.concatenate, zip(NO_POINTS, *(known for known in lexical if known is not None), strict=True)),
            ],
            queries=[
                (query.dense_E is not None, terms is not None, None if known is None else len(known[1]))
                for query, terms, known in zip(queries, sparse, lexical, strict=True)
            ],
            limit=limit,
            name=name,
            filter=_json(filter),
            fields=None if fields is None else list(fields),
            fusion=asdict(fusion),
        )
        return [[Match(*match) for match in matches] for matches in found]

    def ahead(
        self, queries: Sequence[Sparse | None], *, filter: Filter | None = None, fusion: Fusion = RRF
    ) -> list[Leg | None]:
        """See VectorStore. The answer is read when it is used, or before that of the next request."""
        places = [place for place, query in enumerate(queries) if query is not None and len(query.terms_T)]
        asked = [query for query in queries if query is not None and len(query.terms_T)]
        legs: list[Leg | None] = [None] * len(queries)
        if asked and self._one_at_a_time.acquire(blocking=False):
            try:
                if self._unread is None:  # two answers that nobody reads might fill the pipe, and then nobody moves
                    with self._step():
                        self._send({"request": "ahead", "filter": _json(filter), "depth": fusion.depth}, _joined(asked))
                        self._unread = []
                    rankings = cache(partial(self._rankings, self._unread))
                    for number, place in enumerate(places):
                        legs[place] = Leg(fusion.depth, number, rankings)
            finally:
                self._one_at_a_time.release()
        return legs

    def _rankings(self, answers: list[Frame]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query that was asked ahead, the ids (16 bytes each) and the scores of the points that it finds."""
        with self._one_at_a_time:
            if self._unread is answers:
                self._read_ahead()
            if not answers:
                raise self._death()
        sizes, (ids, scores) = self._result("ahead", *answers[0])
        ends = np.cumsum(sizes)[:-1]
        return list(zip(np.split(np.asarray(ids), 16 * ends), np.split(np.asarray(scores), ends), strict=True))

    def vectors(self, ids: Sequence[str], *, name: str = "") -> dict[str, np.ndarray]:
        """See VectorStore."""
        having, (flat,) = self._request_arrays("vectors", ids=list(ids), name=name)
        return dict(zip(having, np.asarray(flat).reshape(len(having), self.schema.dense[name]), strict=True))

    def scroll(self, *, limit: int, start: str | None = None, vectors: bool = True) -> Page:
        """See VectorStore."""
        (found, following), arrays = self._request_arrays("scroll", start=start, limit=limit, vectors=vectors)
        values = (np.asarray(flat) for flat in arrays)
        points = []
        for id, payload, names, is_lexical in found:
            dense = {name: next(values) for name in names}
            sparse = Sparse(next(values), next(values)) if is_lexical else None
            points.append(StoredPoint(Point(id, payload), dense, sparse))
        return Page(points, following)

    def facet(self, field: str, *, filter: Filter | None = None, limit: int = 10) -> list[tuple[str | int | bool, int]]:
        """See VectorStore."""
        assert self.schema.fields.get(field) in FACET_TYPES, (field, self.schema.fields)
        found = self._request("facet", field=field, filter=_json(filter), limit=limit)
        return [(value, count) for value, count in found]

    def add_fields(self, fields: Mapping[str, FieldType]) -> None:
        """See VectorStore."""
        self._request("add_fields", fields=dict(fields))
        self.schema = replace(self.schema, fields={**self.schema.fields, **fields})

    def optimize(self) -> None:
        """See VectorStore. Can take minutes for millions of points; being killed meanwhile does no harm."""
        self._request("optimize")

    def close(self) -> None:
        """See VectorStore. A child in the middle of a request (Ctrl-C) is killed: its log keeps it whole."""
        if not self._in_step:
            self._process.kill()
        elif self._unread is not None:
            with suppress(Unavailable):
                self._read_ahead()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # the child is gone; there is nothing left to tell it
        self._process.wait()
        self._stderr.close()

    def _request(self, request: str, arrays: Sequence[np.ndarray] = (), **fields: Any) -> Any:
        return self._request_arrays(request, arrays, **fields)[0]

    def _request_arrays(
        self, request: str, arrays: Sequence[np.ndarray] = (), **fields: Any
    ) -> tuple[Any, list[memoryview]]:
        return self._result(request, *self._exchange({"request": request, **fields}, arrays))

    def _result(self, request: str, answer: dict[str, Any], arrays: list[memoryview]) -> tuple[Any, list[memoryview]]:
        if "error" in answer:
            self._raise_if_disk_full(answer["error"])
            if answer["type"] == PANIC or answer["error"].startswith(UNREADABLE):
                raise UserError(
                    f"the store in {self.path} cannot be read: {answer['error']}; find out what is damaged with "
                    f"'epic-search indexes verify {self.path.parent.name}'"
                )
            raise RuntimeError(f"the store in {self.path} refused '{request}': {answer['type']}: {answer['error']}")
        return answer["result"], arrays

    def _exchange(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> Frame:
        with self._one_at_a_time:
            if self._unread is not None:
                self._read_ahead()
            with self._step():
                self._send(header, arrays)
                return self._receive()

    def _read_ahead(self) -> None:
        answers = self._unread
        assert answers is not None, self.path
        with self._step():
            answers.append(self._receive())
            self._unread = None

    def _send(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
        try:
            write_frame(self._process.stdin, header, [np.ascontiguousarray(values).ravel() for values in arrays])  # type: ignore[arg-type]
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self) -> Frame:
        frame = read_frame(self._process.stdout)  # type: ignore[arg-type]
        if frame is None:
            raise self._death()
        return frame

    @contextmanager
    def _step(self) -> Iterator[None]:
        """What leaves this process and the engine's out of step if it is cut off."""
        if self._process.poll() is not None:
            raise self._death()
        assert self._in_step, f"a request to the store in {self.path} was cut off before"
        self._in_step = False
        yield
        self._in_step = True

    def _raise_if_disk_full(self, message: str) -> None:
        if any(words in message for words in DISK_FULL):
            raise disk_full(self.path)

    def _death(self) -> Unavailable:
        code = self._process.wait()
        # A page of a file that cannot be had: no room for it, a file cut short, or a disk that fails.
        if code == -signal.SIGBUS and disk_usage(self.path).free < RESERVE_BYTES:
            return disk_full(self.path)
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as when memory runs out"
        if code == -signal.SIGBUS:
            return Unavailable(
                f"the store process of {self.path} ended with {how}, as when a file was cut short or the disk fails; "
                f"see what is wrong with 'epic-search indexes verify {self.path.parent.name}'"
            )
        last = f": {lines[-1]}" if lines else ""
        return Unavailable(
            f"the store process of {self.path} ended with {how}{last}; what was stored is kept: repeat the command"
        )


def _joined(sparse: Sequence[Sparse]) -> list[np.ndarray]:
    """Sparse vectors as three flat arrays: lengths, terms, weights."""
    nothing = Sparse(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.float32))  # for when there are none
    return [
        np.array([len(one.terms_T) for one in sparse], dtype=np.uint32),
        np.concatenate([one.terms_T for one in [*sparse, nothing]]),
        np.concatenate([one.weights_T for one in [*sparse, nothing]]),
    ]


def _json(filter: Filter | None) -> dict[str, Any] | None:
    return None if filter is None else as_qdrant(filter)
