"""Queries against an index: by meaning (dense), words (lexical) or both (hybrid); the best passage of each document."""

import json
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from epic_search.errors import UserError
from epic_search.index.contents import Contents
from epic_search.index.explanation import Explanation, explain
from epic_search.index.fields import DOCUMENT_ID, known, path, value_of
from epic_search.index.filter_parser import parse
from epic_search.index.filters import And, Compare, FieldType, Filter, renamed
from epic_search.index.folder import existing_index
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.prompts import load_prompt
from epic_search.index.ranking import rank
from epic_search.index.store.protocol import FACET_TYPES, Fusion, Match, Sparse, StoreQuery, first_bad_vector

if TYPE_CHECKING:
    from epic_search.encoder import Encoder, Prompt

LOCK_WAIT_SECONDS = 5.0  # queries typed in two terminals at once both get their answer
FUSION = Fusion()
DOCUMENT = "document"

Mode = Literal["hybrid", "dense", "lexical"]
SCORES: dict[Mode, str] = {
    "hybrid": "reciprocal rank fusion of the dense and the lexical ranking: it tells the order, not how good a hit is",
    "dense": "cosine of the query and the passage, at most 1",
    "lexical": "BM25 of the query's words in the passage, 0 and up",
}


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found. `score`: of its best passage, see SCORES; `text`: that passage."""

    id: str
    score: float
    title: str
    text: str
    payload: dict[str, Any]
    explanation: Explanation | None = None


class Searcher:
    """An open index and the encoder that made it. Close it, or use it in a `with` statement."""

    def __init__(
        self, manifest: Manifest, encoder: "Encoder | None", prompt: "Prompt | None", contents: Contents, lock: Lock
    ) -> None:
        self.manifest = manifest
        self._encoder = encoder
        self._prompt = prompt
        self._contents = contents
        self._lock = lock

    @classmethod
    def open(
        cls, name: str, *, home: Path | None = None, encoder: "Encoder | None" = None, lexical_only: bool = False
    ) -> "Searcher":
        """Open an index; loads the encoder that its manifest names unless one is given, or none if `lexical_only`.

        Raises UserError when there is no such index, when another encoder made it, when another process has
        it open, and when its files are damaged.
        """
        folder = existing_index(name, home)
        manifest = Manifest.load(folder)
        if encoder is None and not lexical_only:
            from epic_search.encoder import Encoder

            encoder = Encoder.load(manifest.encoder, dim=manifest.cut_to)
        if encoder is not None:
            manifest.require_encoder(encoder)
        # The lock comes after the slow part, so that it is held for a short time only.
        with ExitStack() as opened:
            lock = opened.enter_context(Lock(folder, wait_seconds=LOCK_WAIT_SECONDS))
            manifest = Manifest.load(folder)
            prompt = None
            if encoder is not None:
                manifest.require_encoder(encoder)
                prompt = load_prompt(folder, manifest, encoder=encoder)
            contents = opened.enter_context(Contents(folder, manifest, lock=lock))
            opened.pop_all()
        return cls(manifest, encoder, prompt, contents, lock)

    @property
    def encoder(self) -> "Encoder":
        """What encodes the queries; there is none where the index was opened for lexical searches only."""
        assert self._encoder is not None, self.manifest.name
        return self._encoder

    @property
    def prompt(self) -> "Prompt":
        """The prompt stored with the index, of its encoder."""
        assert self._prompt is not None, self.manifest.name
        return self._prompt

    @property
    def fields(self) -> dict[str, FieldType]:
        """The types of the fields that filters know."""
        return self.manifest.filter_types

    def search(
        self,
        queries: Sequence[str],
        *,
        k: int = 10,
        offset: int = 0,
        mode: Mode | None = None,
        prompt: "Prompt | None" = None,
        filter: str | Filter | None = None,
        min_score: float | None = None,
        group_by: str = DOCUMENT,
        texts: bool = True,
        explained: bool = False,
    ) -> list[list[Hit]]:
        """The `k` best documents for each query after the first `offset`, best first; fewer where there are no more.

        `mode`: None is hybrid, or dense for an index without words. A query of stop words alone is searched densely in
        hybrid mode. `prompt` replaces the one stored with the index. `filter` is in the grammar of filter_parser.py, or
        parsed. `group_by`: a field of which each value comes once, with its best document; documents without it stand
        alone. With `texts=False` hits carry their id and score alone, which is what long rankings need; `explained`
        ones say where each ranking has them. Raises UserError for an empty query, for k < 1, for an offset below 0, for
        a mode or field that the index does not have, and for a lexical query of stop words alone.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be at least 1")
        if offset < 0:
            raise UserError(f"the offset is {offset}; it must be 0 (the first page) or more")
        for query in queries:
            if not query.strip():
                raise UserError("the query is empty; give some words to search for")
        wanted = self._stored_filter(filter)
        group = self._require_field(group_by, "hits cannot be grouped by") if group_by != DOCUMENT else DOCUMENT_ID
        if not queries:
            return []
        asked = self._store_queries(queries, mode=self.mode(mode), prompt=prompt)
        found = rank(
            self._contents.store,
            asked,
            need=offset + k,
            passages=self._contents.passages,
            key=lambda match: _value(match, group),
            fusion=FUSION,
            min_score=min_score,
            filter=wanted,
            fields=None if texts else ("id", "passage", path(group)),
        )
        pages = [matches[offset:] for matches in found]
        notes: list[list[Explanation | None]] = [[None] * len(page) for page in pages]
        if explained:
            depth = max(FUSION.depth, offset + k)
            notes = explain(self._contents, queries, asked, pages, depth=depth, filter=wanted)  # type: ignore[assignment]
        return [
            [_hit(match, note) for match, note in zip(page, of_page, strict=True)]
            for page, of_page in zip(pages, notes, strict=True)
        ]

    def mode(self, wanted: Mode | None = None) -> Mode:
        """The mode of a search; raises UserError when the index does not have it."""
        if wanted not in (None, *SCORES):
            raise UserError(f"the mode is {wanted!r}; it must be one of {', '.join(SCORES)}")
        if self.manifest.lexical is None:
            if wanted in ("hybrid", "lexical"):
                raise UserError(
                    f"index '{self.manifest.name}' was made before indexes held words, and can only be searched with "
                    "mode dense; for the others, index the documents again under a new name"
                )
            return "dense"
        return wanted or "hybrid"

    def has_words(self, query: str) -> bool:
        """Whether a query has a word that lexical search looks for: not of an index without words, not a stop word."""
        lexical = self._contents.lexical
        return lexical is not None and len(lexical.of_query(query).terms_T) > 0

    def facets(
        self, fields: Sequence[str], *, filter: str | Filter | None = None, limit: int = 10
    ) -> dict[str, list[tuple[str | int | bool, int]]]:
        """The commonest values of each field, with how many of the documents that pass the filter have them.

        Raises UserError for a field that the index does not have, and for one of floats or dates.
        """
        for field in fields:
            self._require_field(field, "documents cannot be counted by")
            if self.fields[field] not in FACET_TYPES:
                raise UserError(
                    f"'{field}' is of type {self.fields[field]}; only keyword, int and bool fields are counted by value"
                )
        wanted = self._stored_filter(filter)
        # All passages of a document carry its payload: its first stands for it.
        first = Compare("passage", "=", 0)
        documents = first if wanted is None else And((first, wanted))
        return {field: self._contents.store.facet(path(field), filter=documents, limit=limit) for field in fields}

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

    def _store_queries(self, queries: Sequence[str], *, mode: Mode, prompt: "Prompt | None") -> list[StoreQuery]:
        sparse: list[Sparse | None] = [None] * len(queries)
        if mode != "dense":
            lexical = self._contents.lexical
            assert lexical is not None, self.manifest
            sparse = [terms if len(terms.terms_T) else None for terms in map(lexical.of_query, queries)]
        if mode != "lexical":
            return list(map(StoreQuery, self._encode(queries, prompt), sparse))
        for query, terms in zip(queries, sparse, strict=True):
            if terms is None:
                raise UserError(
                    f"the query '{query}' has only words that lexical search leaves out (stop words such as 'the'); "
                    "add another word, or use mode hybrid or dense"
                )
        return [StoreQuery(sparse=terms) for terms in sparse]

    def _encode(self, queries: Sequence[str], prompt: "Prompt | None") -> np.ndarray:
        """The queries' vectors, (Q, dim) of unit length, under a prompt or the index's own."""
        vectors_QE = self.encoder.encode_queries(list(queries), prompt=prompt if prompt is not None else self.prompt)
        bad = first_bad_vector(vectors_QE)
        if bad is not None:
            raise UserError(
                f"encoder '{self.encoder.name}' made a vector that is not finite or not of unit length "
                f"from the query '{queries[bad]}'; load it in float32, or ask in other words"
            )
        return vectors_QE

    def _stored_filter(self, filter: str | Filter | None) -> Filter | None:
        parsed = parse(filter, self.fields) if isinstance(filter, str) else filter
        return None if parsed is None else renamed(parsed, path)

    def _require_field(self, field: str, what: str) -> str:
        if field not in self.fields:
            raise UserError(
                f"{what} '{field}': fields of index '{self.manifest.name}' are {known(self.fields)}; "
                "index again with --field NAME:TYPE to add one"
            )
        return field


def _value(match: Match, field: str) -> Hashable:
    """What matches are grouped by: the document's id, or its value of a field, or itself where it has none."""
    if field == DOCUMENT_ID:
        return str(match.payload["id"])
    value = value_of(match.payload.get("payload", {}), field)
    return ("id", match.payload["id"]) if value in (None, []) else ("value", json.dumps(value))


def _hit(match: Match, explanation: Explanation | None) -> Hit:
    payload = match.payload
    return Hit(
        payload["id"],
        match.score,
        payload.get("title", ""),
        payload.get("text", ""),
        payload.get("payload", {}),
        explanation,
    )
