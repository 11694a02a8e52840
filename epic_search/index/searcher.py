"""Queries against an index: encode with its prompt, find near passages, keep the best of each document."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.errors import UserError
from epic_search.index.adaptation import Adapted, adapt
from epic_search.index.contents import Contents
from epic_search.index.folder import existing_index
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.prompts import load_prompt
from epic_search.index.store.protocol import Match, StoreQuery, first_bad_vector
from epic_search.index.taught import Lesson, Neighbour, Taught, TaughtPair
from epic_search.index.ways import Ways

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
        self, manifest: Manifest, encoder: "Encoder", prompt: "Prompt", contents: Contents, taught: Taught, lock: Lock
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.prompt = prompt
        self._contents = contents
        self._taught = taught
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
            taught = Taught(folder, manifest, encoder=encoder, contents=contents, lock=lock)
            opened.pop_all()
        return cls(manifest, encoder, prompt, contents, taught, lock)

    def search(
        self,
        queries: Sequence[str],
        *,
        k: int = 10,
        prompt: "Prompt | None" = None,
        ways: Ways | None = None,
        texts: bool = True,
    ) -> list[list[Hit]]:
        """The `k` best documents for each query, best first; fewer where the index holds fewer.

        `prompt` replaces the one stored with the index, `ways` the index's own of using what it was taught. With
        `texts=False` hits carry their id and score alone, which
        is what long rankings need. Raises UserError for an empty query and for k < 1.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be at least 1")
        if not queries:
            return []
        return self.search_vectors(self.adapt(queries, prompt=prompt, ways=ways).vectors_QE, k=k, texts=texts)

    def adapt(self, queries: Sequence[str], *, prompt: "Prompt | None" = None, ways: Ways | None = None) -> Adapted:
        """The vectors that `search` looks near to, and the taught pairs that each used."""
        for query in queries:
            if not query.strip():
                raise UserError("the query is empty; give some words to search for")
        adapted = adapt(
            list(queries),
            encoder=self.encoder,
            prompt=prompt if prompt is not None else self.prompt,
            task=self.manifest.task,
            taught=self._taught,
            ways=ways or self.ways,
        )
        bad = first_bad_vector(adapted.vectors_QE)
        if bad is not None:
            raise UserError(
                f"encoder '{self.encoder.name}' made a vector that is not finite or not of unit length "
                f"from the query '{queries[bad]}'; load it in float32, or ask in other words"
            )
        return adapted

    def neighbours(self, queries: Sequence[str], *, k: int) -> list[list[Neighbour]]:
        """The `k` taught pairs nearest to each query, nearest first."""
        asked_QE = self.encoder.encode_queries(
            list(queries), prompt=self.encoder.prompt(task=self.manifest.task), whole=True
        )
        return self._taught.nearest(asked_QE, k=k)

    def sample(self, count: int) -> list[Hit]:
        """Passages of all kinds, the same at every call, with score 0."""
        # Points come in the order of their ids, which are hashes.
        points = self._contents.store.scroll(limit=count).points
        return [_hit(Match(stored.point.id, 0.0, stored.point.payload)) for stored in points]

    @property
    def ways(self) -> Ways:
        """How this index uses what it was taught, where a query does not say otherwise."""
        return Ways.of(self.manifest)

    @property
    def width(self) -> float:
        """How far the feedback of a taught pair reaches (see `feedback`)."""
        return self._taught.width()

    def teach(self, query: str, document_ids: Sequence[str]) -> list[TaughtPair]:
        """Teach that these documents are right for the query; related queries are answered accordingly at once.

        Safely stored on return. Returns the new pairs: what was taught before is left as it is. Raises UserError,
        before anything is stored, for an unknown document and for a query that is empty or too long.
        """
        return self.teach_all([Lesson(query, document=id) for id in document_ids])

    def teach_all(self, lessons: Sequence[Lesson]) -> list[TaughtPair]:
        """As `teach`, for many queries, and for passages that are in no document."""
        return self._taught.teach(lessons)

    def taught(self) -> list[TaughtPair]:
        """All pairs taught, oldest first."""
        return self._taught.pairs()

    def forget(self, query: str, document_ids: Sequence[str] = ()) -> list[TaughtPair]:
        """Take back what was taught for a query, all of it or its pairs with these documents; returns what is gone."""
        return self._taught.forget(query, document_ids)

    def forget_all(self) -> int:
        """Take back everything that was taught; returns how many pairs that were."""
        return self._taught.clear()

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
        try:
            self._taught.close()
        finally:
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
    return [_hit(match) for match in ranked]


def _hit(match: Match) -> Hit:
    return Hit(
        match.payload["id"],
        match.score,
        match.payload.get("title", ""),
        match.payload.get("text", ""),
        match.payload.get("payload", {}),
    )
