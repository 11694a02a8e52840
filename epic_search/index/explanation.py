"""Why a hit is where it is: its place and score in each ranking, and the words it has in common with the query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epic_search.index.filters import Filter
from epic_search.index.store.fusion import REACH, places
from epic_search.index.store.protocol import Match, StoreQuery

if TYPE_CHECKING:
    from epic_search.index.place import IndexContents


@dataclass(frozen=True, slots=True)
class Standing:
    """The rank (from 1, among passages) and score of a passage in one ranking; equal scores have the first's rank."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """`dense`, `lexical`: None where the search did not rank so, or the passage is not among its first.

    `words`: those of the query that the passage has, in some form.
    """

    dense: Standing | None
    lexical: Standing | None
    words: list[str]


def explain(
    contents: "IndexContents",
    texts: Sequence[str],
    queries: Sequence[StoreQuery],
    found: Sequence[Sequence[Match]],
    *,
    depth: int,
    filter: Filter | None,
) -> list[list[Explanation]]:
    """An explanation for each match found, from both rankings down to `depth`. `texts`: of the queries."""
    explanations = []
    for text, query, matches in zip(texts, queries, found, strict=True):
        dense = _places(contents, StoreQuery(query.dense_E), depth, filter) if query.dense_E is not None else {}
        lexical = _places(contents, StoreQuery(sparse=query.sparse), depth, filter) if query.sparse is not None else {}
        explanations.append(
            [Explanation(dense.get(m.id), lexical.get(m.id), _words(contents, text, m)) for m in matches]
        )
    return explanations


def _places(contents: "IndexContents", query: StoreQuery, depth: int, filter: Filter | None) -> dict[str, Standing]:
    [matches] = contents.store.search([query], limit=REACH * depth, filter=filter, fields=("id",))
    ranks = places([match.score for match in matches], depth=depth)
    return {match.id: Standing(rank, match.score) for match, (rank, _) in zip(matches, ranks, strict=False)}


def _words(contents: "IndexContents", query: str, match: Match) -> list[str]:
    if contents.lexical is None:
        return []
    return contents.lexical.matched(query, f"{match.payload.get('title', '')}\n{match.payload.get('text', '')}")
