"""Queries against an index: by meaning (dense), words (lexical) or both (hybrid); the best passage of each document."""

import json
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from epic_search.errors import UserError, require_texts
from epic_search.index.adaptation import Adapted, adapt
from epic_search.index.corpus_map import CorpusMap
from epic_search.index.explanation import Explanation, explain
from epic_search.index.fields import DOCUMENT_ID, known, path, value_of
from epic_search.index.filter_parser import parse
from epic_search.index.filters import And, Compare, FieldType, Filter, renamed
from epic_search.index.folder import Home
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.passages import point_id
from epic_search.index.place import IndexContents, place_of, stored_manifest
from epic_search.index.ranking import rank
from epic_search.index.store.protocol import FACET_TYPES, RRF, Match, Sparse, StoreQuery, first_bad_vector, is_ours
from epic_search.index.taught import Neighbour, Taught
from epic_search.index.taught_pair import Lesson, TaughtPair
from epic_search.index.ways import Ways

if TYPE_CHECKING:
    from epic_search.encoder import Encoder, Prompt
    from epic_search.index.store.protocol import VectorStore

LOCK_WAIT_SECONDS = 5.0  # queries typed in two terminals at once both get their answer
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


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document; each of its passages repeats the end of the one before."""

    id: str
    title: str
    passages: list[str]
    payload: dict[str, Any]


class Searcher:
    """An open index and the encoder that made it. Close it, or use it in a `with` statement.

    `lock`: what keeps other processes out of it; None where nothing has to. `map`: its documents in a plane.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: "Encoder | None",
        prompt: "Prompt | None",
        contents: IndexContents,
        taught: Taught | None,
        lock: Lock | None,
        opened: ExitStack,
    ) -> None:
        self.manifest = manifest
        self._encoder = encoder
        self._prompt = prompt
        self._contents = contents
        self._store = contents.store
        self._taught_pairs = taught
        self.lock = lock
        self.map = CorpusMap(contents)
        self._opened = opened

    @classmethod
    def open(
        cls, name: str, *, home: Home | None = None, encoder: "Encoder | None" = None, lexical_only: bool = False
    ) -> "Searcher":
        """Open an index; loads the encoder that its manifest names unless one is given, or none if `lexical_only`.

        Raises UserError when there is no such index, when another encoder made it, when another process has
        it open, and when its files are damaged.
        """
        with ExitStack() as opening:
            place = opening.enter_context(closing(place_of(name, home)))
            manifest = stored_manifest(place)
            if encoder is None and not lexical_only:
                from epic_search.encoder import Encoder

                encoder = Encoder.load(manifest.encoder, dim=manifest.cut_to)
            if encoder is not None:
                manifest.require_encoder(encoder)
            # The lock comes after the slow part, so that it is held for a short time only.
            lock = opening.enter_context(place.lock(wait_seconds=LOCK_WAIT_SECONDS))
            manifest = stored_manifest(place)
            prompt = taught = None
            if encoder is not None:
                manifest.require_encoder(encoder)
                prompt = place.prompt(manifest, encoder=encoder)
            contents = opening.enter_context(place.contents(manifest, lock))
            if encoder is not None:
                taught = place.taught(manifest, encoder=encoder, contents=contents, lock=lock)
                opening.enter_context(closing(taught))
            opened = opening.pop_all()
        return cls(manifest, encoder, prompt, contents, taught, lock, opened)

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
        ways: Ways | None = None,
        filter: str | Filter | None = None,
        min_score: float | None = None,
        group_by: str = DOCUMENT,
        texts: bool = True,
        explained: bool = False,
    ) -> list[list[Hit]]:
        """The `k` best documents for each query after the first `offset`, best first; fewer where there are no more.

        `mode`: None is hybrid, or dense for an index without words. A query of stop words alone is searched densely in
        hybrid mode. `prompt` replaces the one stored with the index, and `ways` the index's own of using what it was
        taught (in lexical mode, none of it is used). `filter` is in the grammar of filter_parser.py, or parsed.
        `group_by`: a field of which each value comes once, with its best document; documents without it stand alone.
        With `texts=False` hits carry their id and score alone, which is what long rankings need; `explained` ones say
        where each ranking has them. Raises UserError for an empty query, for k < 1, for an offset below 0, for a mode
        or field that the index does not have, and for a lexical query of stop words alone.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be at least 1")
        if offset < 0:
            raise UserError(f"the offset is {offset}; it must be 0 (the first page) or more")
        _require_words(queries)
        wanted = self._stored_filter(filter)
        group = self._require_field(group_by, "hits cannot be grouped by") if group_by != DOCUMENT else DOCUMENT_ID
        if not queries:
            return []
        asked = self._store_queries(queries, wanted, mode=self.mode(mode), prompt=prompt, ways=ways)
        found = rank(
            self._store,
            asked,
            need=offset + k,
            passages=self._contents.passages,
            key=lambda match: _value(match, group),
            fusion=RRF,
            min_score=min_score,
            filter=wanted,
            fields=None if texts else ("id", "passage", path(group)),
        )
        pages = [matches[offset:] for matches in found]
        notes: list[list[Explanation | None]] = [[None] * len(page) for page in pages]
        if explained:
            depth = max(RRF.depth, offset + k)
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

    def adapt(self, queries: Sequence[str], *, prompt: "Prompt | None" = None, ways: Ways | None = None) -> Adapted:
        """The vectors that `search` looks near to, and the taught pairs that each used."""
        _require_words(queries)
        adapted = adapt(
            list(queries),
            encoder=self.encoder,
            prompt=prompt if prompt is not None else self.prompt,
            task=self.manifest.task,
            taught=self._taught_pairs,
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
        return self._pairs.nearest(asked_QE, k=k)

    def sample(self, count: int) -> list[Hit]:
        """Passages of all kinds, the same at every call, with score 0."""
        # Points come in the order of their ids, which are hashes.
        points = self._contents.store.scroll(limit=count).points
        return [
            _hit(Match(stored.point.id, 0.0, stored.point.payload), None)
            for stored in points
            if is_ours(stored.point.payload)
        ]

    @property
    def ways(self) -> Ways:
        """How this index uses what it was taught, where a query does not say otherwise."""
        return Ways.of(self.manifest)

    @property
    def reach(self) -> float:
        """How far the feedback of a taught pair reaches (see `feedback`)."""
        return self._pairs.reach()

    def teach(self, query: str, document_ids: Sequence[str]) -> list[TaughtPair]:
        """Teach that these documents are right for the query; related queries are answered accordingly at once.

        Safely stored on return. Returns the new pairs: what was taught before is left as it is. Raises UserError,
        before anything is stored, for an unknown document and for a query that is empty or too long.
        """
        require_texts(document_ids)
        return self.teach_all([Lesson(query, document=id) for id in document_ids])

    def teach_all(self, lessons: Sequence[Lesson]) -> list[TaughtPair]:
        """As `teach`, for many queries, and for passages that are in no document."""
        return self._pairs.teach(lessons)

    def taught(self) -> list[TaughtPair]:
        """All pairs taught, oldest first."""
        return self._pairs.pairs()

    def forget(self, query: str, document_ids: Sequence[str] = ()) -> list[TaughtPair]:
        """Take back what was taught for a query, all of it or its pairs with these documents; returns what is gone."""
        return self._pairs.forget(query, document_ids)

    def forget_all(self) -> int:
        """Take back everything that was taught; returns how many pairs that were."""
        return self._pairs.clear()

    def document(self, document_id: str) -> Document | None:
        """A stored document with all its passages; None where there is none of this id."""
        version = self._contents.versions([document_id]).get(document_id)
        if version is None:
            return None
        found: list[dict[str, Any]] = []
        while True:
            id = point_id(document_id, version, len(found))
            points = self._contents.store.scroll(start=id, limit=1).points
            if not points or points[0].point.id != id:
                break
            found.append(points[0].point.payload)
        return Document(document_id, found[0]["title"], [payload["text"] for payload in found], found[0]["payload"])

    def through(self, other: Callable[["VectorStore"], "VectorStore"]) -> None:
        """Search the store through another with its face, which is closed before it."""
        self._store = other(self._store)
        self._opened.callback(self._store.close)

    def close(self) -> None:
        """Close the index."""
        self._opened.close()

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _pairs(self) -> Taught:
        assert self._taught_pairs is not None, self.manifest.name
        return self._taught_pairs

    def _store_queries(
        self, queries: Sequence[str], filter: Filter | None, *, mode: Mode, prompt: "Prompt | None", ways: Ways | None
    ) -> list[StoreQuery]:
        lexical = self._contents.lexical
        sparse: list[Sparse | None] = [None] * len(queries)
        if mode != "dense":
            assert lexical is not None, self.manifest
            sparse = [terms if len(terms.terms_T) else None for terms in map(lexical.of_query, queries)]
        if mode != "lexical":
            legs = self._store.ahead(sparse, filter=filter)
            adapted = self.adapt(queries, prompt=prompt, ways=ways)
            asked = adapted.expanded(sparse, lexical) if lexical is not None else sparse
            # What was taught may have added words to a query: the leg is of those that it came with.
            legs = [leg if terms is before else None for leg, terms, before in zip(legs, asked, sparse, strict=True)]
            return list(map(StoreQuery, adapted.vectors_QE, asked, legs))
        for query, terms in zip(queries, sparse, strict=True):
            if terms is None:
                raise UserError(
                    f"the query '{query}' has only words that lexical search leaves out (stop words such as 'the'); "
                    "add another word, or use mode hybrid or dense"
                )
        return [StoreQuery(sparse=terms) for terms in sparse]

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


def _require_words(queries: Sequence[str]) -> None:
    require_texts(queries)
    for query in queries:
        if not query.strip():
            raise UserError("the query is empty; give some words to search for")


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
