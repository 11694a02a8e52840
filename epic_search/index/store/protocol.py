"""What the index asks of a vector store, and the checks every vector passes before it gets there.

Shapes: P passages, Q queries, E dimensions of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Point:
    """A stored passage without its vector. `id` is a UUID; the payload is JSON."""

    id: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Match:
    """A point found, with its cosine similarity to the query."""

    score: float
    payload: dict[str, Any]


class VectorStore(Protocol):
    """Points with unit vectors. What `flush` returned from survives a crash of process and machine."""

    def upsert(self, points: Sequence[Point], vectors_PE: np.ndarray) -> None:
        """Store points with float32 unit vectors, replacing those of the same id."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points; an id that is not stored is no error."""

    def flush(self) -> None:
        """Bring everything so far to the disk."""

    def count(self) -> int:
        """How many points are stored."""

    def search(self, vectors_QE: np.ndarray, *, limit: int, fields: Sequence[str] | None = None) -> list[list[Match]]:
        """For each query vector the `limit` nearest points, best first, with these fields of their payload (or all)."""

    def optimize(self) -> None:
        """Build the search graph where there are enough points to need one, and clear out deleted ones."""

    def close(self) -> None:
        """Let go of the store's files."""


def first_bad_vector(vectors_PE: np.ndarray) -> int | None:
    """The row of the first vector that is not finite or not of unit length; None when all are sound."""
    norms_P = np.linalg.norm(vectors_PE, axis=1)
    bad_P = ~(np.abs(norms_P - 1.0) <= UNIT_TOLERANCE)  # also true for NaN
    return int(np.argmax(bad_P)) if bad_P.any() else None
