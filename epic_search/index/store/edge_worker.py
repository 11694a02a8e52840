"""The process in which Qdrant's engine runs: requests come in on stdin, answers go out on stdout.

It is a process of its own because the engine holds Python's global lock while it builds its search graph, and
because its process dies of SIGBUS when the disk is full. Run as a script, by path, and importing nothing else
of this package, it starts in a tenth of a second.

A frame is the two lengths, a JSON header and a blob of raw float32 values.
"""

import ctypes
import json
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
LENGTHS = struct.Struct("<IQ")
# Wider than the engine's default: of 100,000 vectors of 576 dimensions it finds the true top 10 in 1 ms.
HNSW_EF = 256
# Up to this much of vectors (KiB) every search is an exact scan, of about 50 ms. A search graph is less exact,
# and takes minutes to build for that many.
GRAPH_ABOVE_KIB = 256 * 1024


def write_frame(stream: BinaryIO, header: dict[str, Any], blob: bytes | memoryview = b"") -> None:
    """Write one frame and flush."""
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    stream.write(LENGTHS.pack(len(text), len(blob)))
    stream.write(text)
    stream.write(blob)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; None when the other side has gone."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_length, blob_length = LENGTHS.unpack(lengths)
    header = stream.read(header_length)
    blob = stream.read(blob_length)
    if len(header) < header_length or len(blob) < blob_length:
        return None
    return json.loads(header), blob


class Engine:
    """One engine shard; each public method is a request."""

    def __init__(self) -> None:
        import qdrant_edge

        self.edge: Any = qdrant_edge
        self.shard: Any = None
        self.dim = 0

    def open(self, path: str, dim: int, create: bool) -> None:
        self.dim = dim
        if not create:
            self.shard = self.edge.EdgeShard.load(path)
            return
        Path(path).mkdir(parents=True, exist_ok=True)
        # The vectors have unit length; Dot keeps them bit for bit, and Cosine would normalise them again.
        vectors = self.edge.EdgeVectorParams(size=dim, distance=self.edge.Distance.Dot)
        optimizers = self.edge.EdgeOptimizersConfig(indexing_threshold=GRAPH_ABOVE_KIB)
        config = self.edge.EdgeConfig(vectors=vectors, optimizers=optimizers)
        self.shard = self.edge.EdgeShard.create(path, config)

    def upsert(self, points: list[list[Any]], *, blob: bytes) -> None:
        rows = self._rows(blob)
        stored = [self.edge.Point(id, row, payload) for (id, payload), row in zip(points, rows, strict=True)]
        self.shard.update(self.edge.UpdateOperation.upsert_points(stored))

    def delete(self, ids: list[str]) -> None:
        self.shard.update(self.edge.UpdateOperation.delete_points(ids))

    def flush(self) -> None:
        self.shard.flush()

    def count(self) -> int:
        return int(self.shard.count(self.edge.CountRequest(exact=True)))

    def search(self, limit: int, fields: list[str] | None, *, blob: bytes) -> list[list[tuple[float, dict[str, Any]]]]:
        request, nearest = self.edge.QueryRequest, self.edge.Query.Nearest
        params = self.edge.SearchParams(hnsw_ef=max(HNSW_EF, limit))
        payload = True if fields is None else self.edge.PayloadSelector.Include(fields)
        queries = [
            request(query=nearest(row), limit=limit, with_payload=payload, params=params) for row in self._rows(blob)
        ]
        found = self.shard.query_batch(self.edge.QueryBatchRequest(queries))
        return [[(point.score, point.payload) for point in points] for points in found]

    def optimize(self) -> None:
        # This can take minutes, in which the end of the parent would not be noticed and the index stay locked.
        _die_with_parent(signal.SIGKILL)
        self.shard.optimize()
        self.shard.flush()
        _die_with_parent(0)

    def _rows(self, blob: bytes) -> Any:
        import numpy as np

        return np.frombuffer(blob, dtype=np.float32).reshape(-1, self.dim)


def _die_with_parent(death: int) -> None:
    """Ask the kernel for a signal at the parent's death (0: none). Linux only; elsewhere the work is finished."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(death))


REQUESTS_WITH_BLOB = ("upsert", "search")


def main() -> None:
    """Answer requests until stdin closes, which it does when the parent ends in whatever way."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    engine = Engine()
    while (frame := read_frame(requests)) is not None:
        header, blob = frame
        name = header.pop("request")
        try:
            if name in REQUESTS_WITH_BLOB:
                header["blob"] = blob
            result = getattr(engine, name)(**header)
        except BaseException as error:
            # The engine's panics derive from BaseException, and after one the shard cannot be trusted.
            write_frame(answers, {"error": str(error), "type": type(error).__name__})
            if not isinstance(error, Exception):
                return
        else:
            write_frame(answers, {"result": result})
    if engine.shard is not None:
        engine.shard.close()


if __name__ == "__main__":
    main()
