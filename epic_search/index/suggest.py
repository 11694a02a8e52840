"""What is worth teaching next: the queries whose answer is least sure, or that are least like what is taught."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from epic_search.errors import UserError
from epic_search.index.ways import Ways

if TYPE_CHECKING:
    from epic_search.index.searcher import Hit, Searcher

By = Literal["margin", "coverage"]
DOCUMENTS = 500  # whose titles stand in for queries, where there are none
TITLE_WORDS = 12  # of a document without a title


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A query to judge, and the document to judge it with: its best hit.

    `margin`: by how much the best document's cosine is above the second's. `similarity`: cosine of the query and the
    taught query nearest to it; None where nothing is taught.
    """

    query: str
    hit: "Hit"
    margin: float
    similarity: float | None


def suggest(
    searcher: "Searcher", queries: Sequence[str] | None = None, *, count: int = 10, by: By | None = None
) -> list[Suggestion]:
    """The `count` queries most worth judging, the first first; those that are taught already are left out.

    `queries`: None is titles of documents, by coverage; others are chosen by margin, where `by` does not say. By
    "margin": the smallest margin first (uncertainty sampling, as in Scheffer, Decomain and Wrobel, IDA 2001). By
    "coverage": again and again the query least like every taught one and those already chosen (the farthest-first
    traversal of Gonzalez, 1985).
    """
    by = by or ("coverage" if queries is None else "margin")
    queries = queries_of_documents(searcher) if queries is None else queries
    asked = not_taught(queries, {pair.query for pair in searcher.taught()})
    answers = zip(asked, searcher.search(asked, k=2, mode="dense"), searcher.neighbours(asked, k=1), strict=True)
    found = [
        Suggestion(
            query,
            hits[0],
            hits[0].score - hits[1].score if len(hits) > 1 else hits[0].score,
            near[0].similarity if near else None,
        )
        for query, hits, near in answers
        if hits
    ]
    if by == "margin":
        return sorted(found, key=lambda suggestion: suggestion.margin)[:count]
    plain_QE = searcher.adapt([suggestion.query for suggestion in found], ways=Ways("none", boost=0.0)).vectors_QE
    covered_Q = np.array([-1.0 if s.similarity is None else s.similarity for s in found])
    chosen: list[Suggestion] = []
    while len(chosen) < min(count, len(found)):
        next_one = int(np.argmin(covered_Q))
        chosen.append(found[next_one])
        covered_Q = np.maximum(covered_Q, plain_QE @ plain_QE[next_one])
        covered_Q[next_one] = np.inf
    return chosen


def not_taught(queries: Sequence[str], taught: Collection[str]) -> list[str]:
    """Each query once, without those that are taught; raises UserError where that leaves none."""
    asked = [query for query in dict.fromkeys(query.strip() for query in queries) if query not in taught]
    if not asked:
        raise UserError("every query given is taught already; give others")
    return asked


def queries_of_documents(searcher: "Searcher") -> list[str]:
    """Titles of documents, or the first words of those without, to be asked where there are no queries: a sample."""
    hits = searcher.sample(DOCUMENTS)
    return list(dict.fromkeys(hit.title or " ".join(hit.text.split()[:TITLE_WORDS]) for hit in hits))
