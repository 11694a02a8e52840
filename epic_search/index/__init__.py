"""Documents in, hits out: a corpus becomes an index with one encoder, and queries find its documents.

Importing this package is cheap: what needs numpy or the engine loads with the first name used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epic_search.index.corpus import Corpus
    from epic_search.index.document import Document, Problem
    from epic_search.index.folder import IndexInfo, delete_index, home, list_indexes
    from epic_search.index.indexer import IndexProgress, IndexReport, index_corpus
    from epic_search.index.searcher import Hit, Searcher

__all__ = [
    "Corpus",
    "Document",
    "Hit",
    "IndexInfo",
    "IndexProgress",
    "IndexReport",
    "Problem",
    "Searcher",
    "delete_index",
    "home",
    "index_corpus",
    "list_indexes",
]

_HOMES = {
    "corpus": ("Corpus",),
    "document": ("Document", "Problem"),
    "folder": ("IndexInfo", "delete_index", "home", "list_indexes"),
    "indexer": ("IndexProgress", "IndexReport", "index_corpus"),
    "searcher": ("Hit", "Searcher"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"epic_search.index.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
