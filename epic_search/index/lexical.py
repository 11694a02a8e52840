"""BM25 terms of texts: sparse vectors made here, on the client, the same for every store.

Term ids are those of Qdrant's own `Qdrant/bm25` model (a murmur3 hash of each stem, English stop words left out). A
passage's weights hold the term frequency and length part of BM25 (Robertson and Zaragoza 2009, k = 1.2, b = 0.75); the
store multiplies by the inverse document frequency when it searches.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from epic_search.index.store.protocol import Sparse

if TYPE_CHECKING:
    from qdrant_edge import SparseVector


class Lexical:
    """Texts as BM25 terms. `average_length`: terms of an average passage, which longer ones are measured against."""

    def __init__(self, average_length: float) -> None:
        from qdrant_edge import Bm25, Bm25Config

        self._model = Bm25(Bm25Config(avg_len=average_length))

    def of_passage(self, text: str) -> Sparse:
        """The terms of a passage, weighted; empty when it has only stop words."""
        return _sparse(self._model.embed_document(text))

    def of_query(self, text: str) -> Sparse:
        """The different terms of a query, each with weight one; empty when it has only stop words."""
        return _sparse(self._model.embed_query(text))

    def matched(self, query: str, text: str) -> list[str]:
        """The words of a query, as written there, that the text has too in some form."""
        terms = set(self._model.embed_query(text).indices)
        words = dict.fromkeys(query.split())
        return [word for word in words if terms & set(self._model.embed_query(word).indices)]


def average_length(texts: Sequence[str]) -> float:
    """How many terms a text has on average; at least one."""
    from qdrant_edge import Bm25, Bm25Config

    model = Bm25(Bm25Config(k=1e6, b=0.0))  # with these, a term's weight is its frequency
    return max(1.0, fmean(sum(model.embed_document(text).values) for text in texts))


def _sparse(vector: "SparseVector") -> Sparse:
    terms_T = np.array(vector.indices, dtype=np.uint32)
    weights_T = np.array(vector.values, dtype=np.float32)
    order_T = np.argsort(terms_T)
    return Sparse(terms_T[order_T], weights_T[order_T])
