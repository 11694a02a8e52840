"""A pair of a query and what is right for it, as it is given and as it is kept."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from epic_search.encoder.prompt import Demonstration

PAIR_FIELDS = ("query", "document", "title", "passage", "taught", "version", "task", "encoder")  # of a stored point
NAMESPACE = uuid.UUID("5f0c6ad2-6a55-5d0e-9d0f-6a3f9f0b7c52")


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is to be taught: for this query, that document is right, or that passage of the user's own words."""

    query: str
    document: str | None = None
    passage: str | None = None

    def __post_init__(self) -> None:
        assert (self.document is None) != (self.passage is None), self


@dataclass(frozen=True, slots=True)
class TaughtPair:
    """A pair as it is kept. `passage`: what the encoder reads of it, title included; `document`: None for own words.

    `taught`: when, UTC, ISO 8601. `stale`: its document is not in the index now.
    """

    query: str
    document: str | None
    title: str
    passage: str
    taught: str
    stale: bool = False

    @property
    def demonstration(self) -> Demonstration:
        """The two texts."""
        return Demonstration(query=self.query, passage=self.passage)


def label(pair: TaughtPair) -> str:
    """What names a pair among those of its query: its document, or digits made of the user's own words."""
    return pair.document if pair.document is not None else f"text:{pair_id('', None, pair.passage)[:8]}"


def as_pair(payload: dict[str, Any], *, stale: bool = False) -> TaughtPair:
    """The pair of a stored point's payload."""
    return TaughtPair(
        query=payload["query"],
        document=payload["document"],
        title=payload["title"],
        passage=payload["passage"],
        taught=payload["taught"],
        stale=stale,
    )


def answer_of(payload: dict[str, Any]) -> tuple[str, str]:
    """What is right, by which pairs with one answer are known."""
    return ("document", payload["document"]) if payload["document"] is not None else ("passage", payload["passage"])


def pair_id(query: str, document: str | None, passage: str | None) -> str:
    """The same for the same query and document (whatever passage of it is right), or for the same two texts."""
    right = ["document", document] if document is not None else ["passage", (passage or "").strip()]
    return str(uuid.uuid5(NAMESPACE, json.dumps([query.strip(), *right])))
