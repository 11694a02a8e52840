"""Queries against an index: encode with its prompt, find near passages, keep the best of each document."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.errors import UserError
from epic_search.index.contents import Contents
from epic_search.index.folder import existing_index
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.prompts import load_prompt
from epic_search.index.store.protocol import Match, StoreQuery, first_bad_vector

if TYPE_CHECKING:
    from epic_search.encoder import Encoder, Prompt

LOCK_WAIT_SECONDS = 5.0  # queries typed in two terminals at once both get their answer


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found. `score`: cosine of the query and its best passage; `text`: that passage."""

    id: str
    score: float
    title: str
    text: str
    payload: dict[str, Any]


class Searcher:
    """An open index and the encoder that made it. Close it, or use it in a `with` statement."""

    def __init__(
        self, manifest: Manifest, encoder: "Encoder", prompt: "Prompt", contents: Contents, lock: Lock
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.prompt = prompt
        self._contents = contents
        self._lock = lock

    @classmethod
    def open(cls, name: str, *, home: Path | None = None, encoder: "Encoder | None" = None) -> "Searcher":
        """Open an index; loads the encoder that its manifest names unless one is given.

        Raises UserError when there is no such index, when another encoder made it, when another process has
        it open, and when its files are damaged.
        """
        folder = existing_index(name, home)
        manifest = Manifest.load(folder)
        if encoder is None:
            from epic_search.encoder import Encoder

            encoder = Encoder.load(manifest.encoder, dim=manifest.cut_to)
        manifest.require_encoder(encoder)
        # The lock comes after the slow part, so that it is held for a short time only.
        with ExitStack() as opened:
            lock = opened.enter_context(Lock(folder, wait_seconds=LOCK_WAIT_SECONDS))
            manifest = Manifest.load(folder)
            manifest.require_encoder(encoder)
            prompt = load_prompt(folder, manifest, encoder=encoder)
            contents = opened.enter_context(Contents(folder, manifest, lock=lock))
            opened.pop_all()
        return cls(manifest, encoder, prompt, contents, lock)

    def search(
        self, queries: Sequence[str], *, k: int = 10, prompt: "Prompt | None" = None, texts: bool = True
    ) -> list[list[Hit]]:
        """The `k` best documents for each query, best first; fewer where the index holds fewer.

        `prompt` replaces the one stored with the index. With `texts=False` hits carry their id and score alone, which
        is what long rankings need. Raises UserError for an empty query and for k < 1.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be at least 1")
        for query in queries:
            if not query.strip():
                raise UserError("the query is empty; give some words to search for")
        if not queries:
            return []
        vectors_QE = self.encoder.encode_queries(list(queries), prompt=prompt if prompt is not None else self.prompt)
        bad = first_bad_vector(vectors_QE)
        if bad is not None:
            raise UserError(
                f"encoder '{self.encoder.name}' made a vector that is not finite or not of unit length "
                f"from the query '{queries[bad]}'; load it in float32, or ask in other words"
            )
        return self.search_vectors(vectors_QE, k=k, texts=texts)

    def search_vectors(self, vectors_QE: np.ndarray, *, k: int, texts: bool = True) -> list[list[Hit]]:
        """As `search`, for query vectors: float32 (Q, dim), unit length."""
        fields = None if texts else ("id",)
        hits: list[list[Hit]] = [[] for _ in vectors_QE]
        open_queries = list(range(len(vectors_QE)))
        # Where every document is one passage, the k nearest passages are the answer.
        limit = k if self._contents.passages == self._contents.documents else 2 * k
        while open_queries:
            limit = min(limit, self._contents.passages)
            if limit == 0:
                break
            queries = [StoreQuery(vectors_QE[query]) for query in open_queries]
            found = self._contents.store.search(queries, limit=limit, fields=fields)
            for query, matches in zip(open_queries, found, strict=True):
                hits[query] = _best_per_document(matches)[:k]
            if limit == self._contents.passages:
                break
            # Many passages of few documents came first: look further down for those queries only.
            open_queries = [query for query in open_queries if len(hits[query]) < k]
            limit *= 4
        return hits

    def close(self) -> None:
        """Close the index."""
        self._contents.close()
        self._lock.close()

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _best_per_document(matches: Sequence[Match]) -> list[Hit]:
    """One hit per document, best first; equal scores in the order of ids, so that every run ranks alike."""
    best: dict[str, Match] = {}
    for match in matches:
        best.setdefault(match.payload["id"], match)
    ranked = sorted(best.values(), key=lambda match: (-match.score, match.payload["id"]))
    return [
        Hit(
            match.payload["id"],
            match.score,
            match.payload.get("title", ""),
            match.payload.get("text", ""),
            match.payload.get("payload", {}),
        )
        for match in ranked
    ]
