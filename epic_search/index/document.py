"""A document, and why a row of a source is none."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PROBLEMS_KEPT = 20


@dataclass(frozen=True, slots=True)
class Document:
    """One usable row or file, `size` bytes of content. `digest` (sha256) changes when the content does.

    The content is id, title, text and payload, except for a file's time of modification. `place` says where the
    document was read: `line 12`, `row 12`, `notes/a.md`.
    """

    id: str
    title: str
    text: str
    payload: dict[str, Any]
    place: str
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row was skipped. `id`: the document's, where the source knows it of a row that it cannot read."""

    place: str
    kind: str
    detail: str = ""
    id: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Problems:
    """All skipped rows, counted by kind; the first few are kept whole.

    `ids`: whose rows those are, where that is known; `nameless`: of how many it is not.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: list[Problem] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    nameless: int = 0

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it if it is among the first."""
        self.counts[problem.kind] += 1
        if len(self.first) < PROBLEMS_KEPT:
            self.first.append(problem)
        if problem.id is None:
            self.nameless += 1
        else:
            self.ids.add(problem.id)

    @property
    def total(self) -> int:
        """How many rows were skipped."""
        return self.counts.total()


class Unusable(Exception):
    """A row that is no document: (kind, detail)."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail
