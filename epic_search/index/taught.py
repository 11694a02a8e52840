"""What a user taught: pairs of a query and the passage that is right for it, in a small store beside the index's own.

A pair's two vectors are those that a prompt holds: whole, the query under the index's task alone, the passage plain.
So the pairs nearest to a query become its demonstrations without being encoded again. The passage's vector comes out
of the index, except where the index holds cut ones. A pair follows its document: when that has changed, or the
index's task has, opening the index makes the pair's vectors anew; while the document is gone, the pair is stale and
not used. Where others may change the documents meanwhile, it is seen after some seconds which ones are gone.

Shapes: Q queries, K pairs, P passages of a document, E dimensions of a whole vector.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from epic_search.errors import UserError, require_texts
from epic_search.index.feedback import chosen_reach
from epic_search.index.manifest import now
from epic_search.index.passages import encoded_text
from epic_search.index.store.connection import ServerError
from epic_search.index.store.protocol import Match, Point, Schema, StoreQuery, is_ours, pages_of, shortened
from epic_search.index.taught_pair import PAIR_FIELDS, Lesson, TaughtPair, answer_of, as_pair, label, pair_id

if TYPE_CHECKING:
    from epic_search.encoder import Encoder, Prompt
    from epic_search.index.manifest import Manifest
    from epic_search.index.place import IndexContents
    from epic_search.index.store.protocol import VectorStore
    from epic_search.index.taught_place import TaughtPlace

QUERY, PASSAGE = "query", "passage"
PAGE = 256
LEARNED_FROM = 500  # pairs
NAMED = 300  # characters of a query or an id, in what is said of it
LOOK_SECONDS = 5.0  # how long queries go on with what was there, before they look again


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """A taught pair near a query, with its vectors; `similarity`: cosine of the two queries."""

    pair: TaughtPair
    similarity: float
    query_E: np.ndarray
    passage_E: np.ndarray


class Taught:
    """The pairs taught to an open index. Close it."""

    def __init__(
        self, place: "TaughtPlace", manifest: "Manifest", *, encoder: "Encoder", contents: "IndexContents"
    ) -> None:
        """Open what was taught, which may be nothing; brings pairs in step with their documents and the task.

        Raises UserError when the pairs were taught to another encoder and when their files are damaged.
        """
        self._place = place
        self._manifest = manifest
        self._encoder = encoder
        self._contents = contents
        self._reach: float | None = None
        self._stale: set[str] = set()
        self._opened: VectorStore | None = None
        self._state: object = None
        self._looked = -math.inf
        self._opening = threading.RLock()  # a second engine cannot open the files of a folder
        _ = self._store

    @property
    def _store(self) -> "VectorStore | None":
        """The pairs; looked for until there are some, which another machine may have taught."""
        return self._look(at_once=True)

    def _look(self, *, at_once: bool = False) -> "VectorStore | None":
        """The pairs, as they were some seconds ago, if not `at_once`."""
        with self._opening:
            is_due = time.monotonic() - self._looked >= LOOK_SECONDS
            if is_due or (at_once and self._opened is None):
                self._looked = time.monotonic()
                if self._opened is None:
                    self._open()
                elif (state := self._place.state()) != self._state:
                    self._compare(self._opened)
                    self._state = state
            return self._opened

    def _open(self) -> None:
        if (store := self._place.open(self._schema())) is not None:
            try:
                self._manifest.taught = store.count()
                self._state = self._place.state()
                self._follow(store)
            except BaseException:
                store.close()
                raise
            self._opened = store

    def __len__(self) -> int:
        """How many pairs can be used."""
        store = self._look()
        return store.count() - len(self._stale) if store is not None else 0

    def close(self) -> None:
        """Close the store."""
        if self._opened is not None:
            self._opened.close()

    def pairs(self) -> list[TaughtPair]:
        """All pairs, the first taught first."""
        found = [as_pair(point.payload, stale=point.id in self._stale) for point in self._points()]
        return sorted(found, key=lambda pair: (pair.taught, pair.query, pair.document or ""))

    def teach(self, lessons: Sequence[Lesson]) -> list[TaughtPair]:
        """Store what is not taught yet, safely on return; returns those pairs.

        Raises UserError, before anything is stored, for a document that is not in the index and for a text that is
        empty or longer than the encoder reads.
        """
        for lesson in lessons:
            self._check(lesson)
        asked = {pair_id(lesson.query, lesson.document, lesson.passage): lesson for lesson in lessons}
        store = self._store
        known = store.vectors(list(asked), name=QUERY) if store is not None else {}
        time = now()
        pairs = [
            TaughtPair(lesson.query.strip(), lesson.document, "", lesson.passage or "", time)
            for id, lesson in asked.items()
            if id not in known
        ]
        if not pairs:
            return []
        return self._add(pairs)

    def adopt(self, points: Iterable[Point]) -> None:
        """Teach again the pairs of points that another encoder's store holds, as they were taught; then all are here.

        Pairs whose documents are not in the index come along, stale.
        """
        known = {point.id for point in self._points()}
        pairs = [as_pair(point.payload) for point in points if point.id not in known]
        for first in range(0, len(pairs), PAGE):
            self._add(pairs[first : first + PAGE])

    def _add(self, pairs: Sequence[TaughtPair]) -> list[TaughtPair]:
        with self._opening:
            store = self._store
            if store is None:
                store = self._opened = self._place.create(self._schema())
        made = self._put(store, pairs)
        self._manifest.taught = store.count()
        self._place.note(self._manifest)
        self._place.confirm()
        return made

    def forget(self, query: str, document_ids: Sequence[str] = ()) -> list[TaughtPair]:
        """Remove what was taught for a query: all of it, or its pairs with these documents. Returns what is gone.

        A passage of the user's own words has an id, too: see `label`. Raises UserError when nothing is so.
        """
        require_texts(document_ids)
        pairs = [pair for pair in self.pairs() if pair.query == query.strip()]
        if not pairs:
            near = get_close_matches(query, {pair.query for pair in self.pairs()}, cutoff=0.5)
            remedy = f"; taught are {_listed(near)}" if near else ""
            raise UserError(
                f"nothing is taught for the query {_listed([query])}{remedy}; 'epic-search teach list' shows all"
            )
        labels = [label(pair) for pair in pairs]
        for document_id in document_ids:
            if document_id not in labels:
                raise UserError(
                    f"'{document_id}' is not taught for the query {_listed([query])}; taught are {_listed(labels)}"
                )
        gone = [pair for pair in pairs if not document_ids or label(pair) in document_ids]
        self._remove([pair_id(pair.query, pair.document, pair.passage) for pair in gone])
        return gone

    def clear(self) -> int:
        """Remove everything taught; returns how many pairs that were."""
        ids = [point.id for point in self._points()]
        self._remove(ids)
        return len(ids)

    def nearest(self, queries_QE: np.ndarray, *, k: int) -> list[list[Neighbour]]:
        """For each query (whole vectors, encoded under the index's task alone) its `k` nearest pairs, nearest first."""
        store = self._look()
        if store is None:
            return [[] for _ in queries_QE]
        # What is stale is passed over here: marking it in the store would write at every opening.
        found = store.search([StoreQuery(row) for row in queries_QE], limit=k + len(self._stale), name=QUERY)
        # Pairs of one query are equally near: their ids order them, and not the engine.
        found = [
            sorted((one for one in matches if self._is_used(one)), key=lambda one: (-one.score, one.id))[:k]
            for matches in found
        ]
        ids = list({match.id for matches in found for match in matches})
        queries, passages = (store.vectors(ids, name=name) for name in (QUERY, PASSAGE))
        return [
            [
                Neighbour(as_pair(match.payload), min(1.0, match.score), queries[match.id], passages[match.id])
                for match in matches
                if match.id in queries and match.id in passages  # else another machine has just removed it
            ]
            for matches in found
        ]

    def reach(self) -> float:
        """How far the feedback of a pair reaches: that of `feedback.weights` which fits what is taught now."""
        if self._reach is None:
            # Points come in the order of their ids, which are hashes: the first are a sample.
            store = self._look()
            points = store.scroll(limit=LEARNED_FROM).points if store is not None else []
            used = [stored for stored in points if self._is_used(stored.point)]
            answers = [answer_of(stored.point.payload) for stored in used]
            vectors = [np.array([stored.dense[name] for stored in used]) for name in (QUERY, PASSAGE)]
            self._reach = chosen_reach(vectors[0], vectors[1], answers)
        return self._reach

    def _is_used(self, pair: Point | Match) -> bool:
        return pair.id not in self._stale and is_ours(pair.payload, PAIR_FIELDS)

    def _check(self, lesson: Lesson) -> None:
        longest = self._encoder.config.max_length
        texts = {"query": lesson.query, "passage": lesson.passage}
        for what, text in texts.items():
            if text is None:
                continue
            if not text.strip():
                raise UserError(f"the {what} is empty; give the words of both, the query and what is right for it")
            if len(self._encoder.token_ids([text], max_length=longest + 1)[0]) > longest:
                raise UserError(
                    f"the {what} '{text[:60]} ...' takes more than the {longest} tokens that {self._encoder.name} "
                    "reads of a text; shorten it"
                )
        if lesson.document is not None and not self._contents.points_of(lesson.document):
            near = self._contents.ids_near(lesson.document)
            meant = f"written like it are {_listed(near)}" if near else "give the id of a hit"
            raise UserError(f"index '{self._manifest.name}' has no document '{lesson.document}'; {meant}")

    def _put(self, store: "VectorStore", pairs: Sequence[TaughtPair], *, only_known: bool = False) -> list[TaughtPair]:
        """Store pairs with new vectors, and a document's passage as it is now; returns them so."""
        self._place.require_space()
        queries_KE = self._encoder.encode_queries([pair.query for pair in pairs], prompt=self._plain(), whole=True)
        passages_KE = np.empty_like(queries_KE)
        made: list[TaughtPair] = []
        versions: list[str | None] = []
        to_encode: list[int] = []
        for number, (pair, query_E) in enumerate(zip(pairs, queries_KE, strict=True)):
            pair, version, in_index_E = self._from_index(pair, query_E)
            made.append(pair)
            versions.append(version)
            if in_index_E is None or self._manifest.cut_to is not None:
                to_encode.append(number)
            else:
                passages_KE[number] = in_index_E
        if to_encode:
            texts = [made[number].passage for number in to_encode]
            passages_KE[to_encode] = self._encoder.encode_passages(texts, whole=True)
        points = [
            Point(
                pair_id(pair.query, pair.document, pair.passage),
                {
                    "query": pair.query,
                    "document": pair.document,
                    "title": pair.title,
                    "passage": pair.passage,
                    "taught": pair.taught,
                    "version": version,
                    "task": self._manifest.task,
                    "encoder": self._encoder.fingerprint,
                },
            )
            for pair, version in zip(made, versions, strict=True)
        ]
        self._reach = None
        self._stale |= {
            point.id for point in points if point.payload["document"] is not None and point.payload["version"] is None
        }
        store.upsert(points, {QUERY: queries_KE, PASSAGE: passages_KE}, only_known=only_known)
        store.flush()
        return made

    def _from_index(self, pair: TaughtPair, query_E: np.ndarray) -> tuple[TaughtPair, str | None, np.ndarray | None]:
        """The pair with the passage of its document that is nearest to the query; the version; the passage's vector.

        A pair of the user's own words, or of a document that is gone, has neither and stays as it is.
        """
        ids = self._contents.points_of(pair.document) if pair.document is not None else []
        if pair.document is None or not ids:
            return pair, None, None
        store = self._contents.store
        stored = store.vectors(ids)
        if len(stored) < len(ids):
            raise UserError(f"document '{pair.document}' has just been replaced by another run; repeat the command")
        vectors_PE = np.stack([stored[id] for id in ids])
        best = int(np.argmax(vectors_PE @ as_stored(query_E[None], self._manifest.dim)[0]))
        point = store.scroll(start=ids[best], limit=1).points[0].point
        assert point.id == ids[best], (point.id, ids[best])
        title = point.payload.get("title", "")
        text = encoded_text(title, point.payload["text"], self._encoder)
        version = self._contents.versions([pair.document])[pair.document].hex()
        return replace(pair, title=title, passage=text), version, vectors_PE[best]

    def _follow(self, store: "VectorStore") -> None:
        """Note the pairs whose document is gone; make anew those whose document or task has changed."""
        changed = self._compare(store)
        try:
            for first in range(0, len(changed), PAGE):
                # What another machine has forgotten meanwhile does not come back.
                self._put(store, changed[first : first + PAGE], only_known=True)
        except ServerError as error:
            if error.failure.kind != "key":
                raise  # who may only read uses the pairs as they are

    def _compare(self, store: "VectorStore") -> list[TaughtPair]:
        """Note the pairs whose document is gone; returns those whose document or task has changed.

        While an index is open, the run that changes it makes these anew (see Place.settle).
        """
        changed, stale = [], set()
        for page in pages_of(store, having=PAIR_FIELDS, limit=PAGE, vectors=False):
            points = [stored.point for stored in page]
            for point in points:
                if (made_by := point.payload["encoder"]) != self._encoder.fingerprint:
                    raise UserError(
                        f"what index '{self._manifest.name}' was taught is of another encoder (fingerprint "
                        f"{made_by[:12]}, and this is {self._encoder.fingerprint[:12]}); remove {self._place.where} "
                        "and teach again"
                    )
            documents = {point.payload["document"] for point in points} - {None}
            versions = self._contents.versions(sorted(documents))
            for point in points:
                document = point.payload["document"]
                if document is not None and document not in versions:
                    stale.add(point.id)
                elif point.payload["task"] != self._manifest.task or (
                    document is not None and versions[document].hex() != point.payload["version"]
                ):
                    changed.append(as_pair(point.payload))
        self._stale, self._reach = stale, None
        return changed

    def _remove(self, ids: Sequence[str]) -> None:
        store = self._store
        if store is None or not ids:
            return
        # The count goes first: fewer pairs than it says would be damage.
        self._manifest.taught = store.count() - len(ids)
        self._place.note(self._manifest)
        store.delete(ids)
        store.flush()
        self._place.confirm()
        self._stale -= set(ids)
        self._reach = None

    def _points(self) -> Iterator[Point]:
        store = self._store
        return points_of(store) if store is not None else iter(())

    def _plain(self) -> "Prompt":
        """The prompt of taught queries: the index's task alone."""
        return self._encoder.prompt(task=self._manifest.task)

    def _schema(self) -> Schema:
        width = self._plain().vectors_SE.shape[1]
        return Schema({QUERY: width, PASSAGE: width})


def points_of(store: "VectorStore") -> Iterator[Point]:
    """All points of a store, without their vectors."""
    return (stored.point for page in pages_of(store, having=PAIR_FIELDS, limit=PAGE, vectors=False) for stored in page)


def as_stored(whole_NE: np.ndarray, dim: int) -> np.ndarray:
    """(N, dim) unit-length vectors as an index holds them: the first dimensions of whole ones (see `matryoshka`)."""
    return whole_NE if dim == whole_NE.shape[1] else shortened(whole_NE, dim)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name if len(name) <= NAMED else name[:NAMED] + ' ...'}'" for name in names)
