"""A picture of a corpus: its documents in a plane, those of alike texts near each other.

The plane is that of the first two principal components of stored vectors, of a sample where there are many. They come
from a randomised singular value decomposition (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4),
which is quick for wide vectors too, and the same at every call.

Shapes: P points, E dimensions of a vector, G guesses (fewer where there are fewer points), 2 dimensions of the plane.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from epic_search.index.passages import point_id
from epic_search.index.store.protocol import PASSAGE_FIELDS, pages_of

if TYPE_CHECKING:
    from epic_search.index.place import IndexContents
    from epic_search.index.store.protocol import StoredPoint, VectorStore

SAMPLE = 5000  # passages that the plane is fitted to
GUESSES = 16  # directions looked into to find the first two
PAGE = 128  # passages read at once: searches go on in between
CHARACTERS = 100_000  # of ids and titles in a map: some 1,500 documents
TITLE = 80  # characters
SPREAD = (0.5, 99.5)  # percentiles that lie near the edges: a stray document does not shrink the others


@dataclass(frozen=True, slots=True)
class Spot:
    """A document in the plane; `x` and `y` are from -1 to 1."""

    id: str
    title: str
    x: float
    y: float


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Where vectors lie along two axes (E, 2): those from `low` to `high` (2,) there fill it."""

    axes_E2: np.ndarray
    low_2: np.ndarray
    high_2: np.ndarray

    def places(self, vectors_PE: np.ndarray) -> np.ndarray:
        """(P, 2) coordinates from -1 to 1."""
        places_P2 = 2 * (vectors_PE @ self.axes_E2 - self.low_2) / (self.high_2 - self.low_2) - 1
        return np.clip(0.95 * places_P2, -1.0, 1.0)


class CorpusMap:
    """The map of an open index: made when it is first asked for, and again when the number of passages has changed."""

    def __init__(self, contents: "IndexContents") -> None:
        self._contents = contents
        self._one_at_a_time = threading.Lock()
        self._passages: int | None = None
        self._plane = plane_of(np.zeros((0, 1), dtype=np.float32))
        self._sample: list[Spot] = []

    def sample(self) -> list[Spot]:
        """Documents of all kinds: all of a small index, else as many as their names leave room for."""
        self._make()
        return self._sample

    def spots(self, document_ids: Sequence[str]) -> list[Spot]:
        """These documents, by their first passages; those that are not in the index are left out."""
        self._make()
        store = self._contents.store
        versions = self._contents.versions(list(document_ids))
        points = [point_id(id, versions[id], 0) for id in document_ids if id in versions]
        found = [page.points[0] for id in points if (page := store.scroll(start=id, limit=1)).points]
        return self._spots([stored for stored in found if stored.point.id in points])

    def _make(self) -> None:
        store = self._contents.store
        with self._one_at_a_time:
            if (passages := store.count()) == self._passages:
                return
            first = list(_first_passages(store))
            self._plane = plane_of(np.array([stored.dense[""] for stored in first], dtype=np.float32))
            self._sample, room = [], CHARACTERS
            for spot in self._spots(first):
                room -= len(spot.id) + len(spot.title)
                if room < 0:
                    break
                self._sample.append(spot)
            self._passages = passages

    def _spots(self, found: "Sequence[StoredPoint]") -> list[Spot]:
        if not found:
            return []
        places_P2 = self._plane.places(np.array([stored.dense[""] for stored in found], dtype=np.float32))
        return [
            Spot(stored.point.payload["id"], _title(stored), round(float(x), 3), round(float(y), 3))
            for stored, (x, y) in zip(found, places_P2, strict=True)
        ]


def plane_of(vectors_PE: np.ndarray) -> Plane:
    """The plane in which vectors differ most; any plane where fewer than three differ."""
    width = vectors_PE.shape[-1]
    if len(vectors_PE) < 2:
        return Plane(np.zeros((width, 2), dtype=np.float32), -np.ones(2), np.ones(2))
    centred_PE = vectors_PE - vectors_PE.mean(axis=0)
    guess_EG = np.random.default_rng(0).standard_normal((width, GUESSES)).astype(np.float32)
    for _ in range(6):
        basis_PG, _ = np.linalg.qr(centred_PE @ guess_EG)
        guess_EG, _ = np.linalg.qr(centred_PE.T @ basis_PG)
    _, _, turn_GG = np.linalg.svd(centred_PE @ guess_EG, full_matrices=False)
    axes_E2 = guess_EG @ turn_GG[:2].T
    # The sign of an axis is arbitrary: its largest part is positive, so that a map does not flip.
    axes_E2 *= np.sign(axes_E2[np.abs(axes_E2).argmax(axis=0), [0, 1]])
    low_2, high_2 = np.percentile(vectors_PE @ axes_E2, SPREAD, axis=0)
    flat_2 = high_2 - low_2 < 1e-6
    return Plane(axes_E2, np.where(flat_2, low_2 - 1, low_2), np.where(flat_2, high_2 + 1, high_2))


def _first_passages(store: "VectorStore") -> "Iterator[StoredPoint]":
    """Of each document in a sample its first passage. Points come in the order of their ids, which are hashes."""
    pages = islice(pages_of(store, having=PASSAGE_FIELDS, limit=PAGE), ceil(SAMPLE / PAGE))
    return (stored for page in pages for stored in page if stored.point.payload["passage"] == 0)


def _title(stored: "StoredPoint") -> str:
    payload = stored.point.payload
    return str(payload.get("title") or payload["text"])[:TITLE]
