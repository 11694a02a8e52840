"""Qdrant's in-process engine, run in a child process and kept from its sharp edges."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epic_search.errors import UserError
from epic_search.index.disk import disk_full
from epic_search.index.store import edge_worker
from epic_search.index.store.edge_worker import read_frame, write_frame
from epic_search.index.store.protocol import Match, Point, first_bad_vector

UPSERT_POINTS = 256  # points in one request: bounds the memory of a document of thousands of passages
DISK_FULL = ("No space left on device", "WAL buffer size exceeds available disk space")


class StoreDamaged(Exception):
    """The engine cannot open its files."""


class EdgeStore:
    """A `VectorStore` in a folder. Raises UserError when the disk is full or the engine's process dies."""

    def __init__(self, path: Path, *, dim: int, create: bool, keep_open: Sequence[int] = ()) -> None:
        """Open the store in `path`, or make an empty one there.

        The child holds the `keep_open` file descriptors too: a lock among them lasts as long as the child,
        even when this process is killed. Raises StoreDamaged when the files cannot be read.
        """
        self.path = path
        self.dim = dim
        self._one_at_a_time = threading.Lock()
        self._in_step = True
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
            answer = self._exchange({"request": "open", "path": str(path), "dim": dim, "create": create}, b"")
            if "error" in answer:
                self._raise_if_disk_full(answer["error"])
                raise StoreDamaged(answer["error"])
        except BaseException:
            self.close()
            raise

    def upsert(self, points: Sequence[Point], vectors_PE: np.ndarray) -> None:
        """See VectorStore. Vectors must be finite and of unit length: the engine takes any, and keeps NaN."""
        assert vectors_PE.shape == (len(points), self.dim), (vectors_PE.shape, len(points), self.dim)
        assert first_bad_vector(vectors_PE) is None, points[first_bad_vector(vectors_PE) or 0].id
        for first in range(0, len(points), UPSERT_POINTS):
            some = points[first : first + UPSERT_POINTS]
            rows_PE = vectors_PE[first : first + UPSERT_POINTS]
            self._request("upsert", rows_PE, points=[[point.id, point.payload] for point in some])

    def delete(self, ids: Sequence[str]) -> None:
        """See VectorStore."""
        self._request("delete", ids=list(ids))

    def flush(self) -> None:
        """See VectorStore."""
        self._request("flush")

    def count(self) -> int:
        """See VectorStore."""
        return int(self._request("count"))

    def search(self, vectors_QE: np.ndarray, *, limit: int, fields: Sequence[str] | None = None) -> list[list[Match]]:
        """See VectorStore."""
        assert vectors_QE.ndim == 2 and vectors_QE.shape[1] == self.dim, (vectors_QE.shape, self.dim)
        assert first_bad_vector(vectors_QE) is None, first_bad_vector(vectors_QE)
        found = self._request("search", vectors_QE, limit=limit, fields=None if fields is None else list(fields))
        return [[Match(score, payload) for score, payload in matches] for matches in found]

    def optimize(self) -> None:
        """See VectorStore. Can take minutes for millions of points; being killed meanwhile does no harm."""
        self._request("optimize")

    def close(self) -> None:
        """See VectorStore. A child in the middle of a request (Ctrl-C) is killed: its log keeps it whole."""
        if not self._in_step:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # the child is gone; there is nothing left to tell it
        self._process.wait()
        self._stderr.close()

    def _request(self, request: str, vectors: np.ndarray | None = None, **fields: Any) -> Any:
        blob = b"" if vectors is None else np.ascontiguousarray(vectors, dtype=np.float32).tobytes()
        answer = self._exchange({"request": request, **fields}, blob)
        if "error" in answer:
            self._raise_if_disk_full(answer["error"])
            raise RuntimeError(f"the store in {self.path} refused '{request}': {answer['type']}: {answer['error']}")
        return answer["result"]

    def _exchange(self, header: dict[str, Any], blob: bytes) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with self._one_at_a_time:
            assert self._in_step, f"a request to the store in {self.path} was cut off before"
            self._in_step = False
            try:
                write_frame(stdin, header, blob)  # type: ignore[arg-type]
                frame = read_frame(stdout)  # type: ignore[arg-type]
            except BrokenPipeError:
                frame = None
            if frame is None:
                raise self._death()
            self._in_step = True
        return frame[0]

    def _raise_if_disk_full(self, message: str) -> None:
        if any(words in message for words in DISK_FULL):
            raise disk_full(self.path)

    def _death(self) -> UserError:
        code = self._process.wait()
        if code == -signal.SIGBUS:
            return disk_full(self.path)
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as when memory runs out"
        last = f": {lines[-1]}" if lines else ""
        return UserError(
            f"the store process of {self.path} ended with {how}{last}; what was stored is kept: repeat the command"
        )
