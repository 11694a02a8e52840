"""A corpus into an index, a chunk at a time; repeatable, and resumable.

Three stages work at once, on consecutive chunks: the caller's thread reads and cuts, so that Ctrl-C ends a wait for
input; a second one encodes; a third one stores. A chunk is stored before the next one is, and whatever ends a run, the
chunks that were encoded before are stored.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from epic_search.errors import UserError
from epic_search.index.corpus import Corpus
from epic_search.index.document import Document, Problem
from epic_search.index.fields import Field, inferred, misfit, read_texts, require_fitting
from epic_search.index.filters import FieldType
from epic_search.index.folder import Home
from epic_search.index.lexical import average_length
from epic_search.index.manifest import Manifest, StoredLexical, now
from epic_search.index.passages import CutDocument, cut, version
from epic_search.index.place import IndexContents, Place, target_place
from epic_search.index.prompts import new_prompt
from epic_search.index.stage import Stage
from epic_search.index.store.protocol import first_bad_vector

if TYPE_CHECKING:
    from epic_search.encoder import Demonstration, Encoder
    from epic_search.index.store.collection import Layout

CHUNK_PASSAGES = 256  # encoded and stored at once; a killed run can lose two: one being encoded, one being stored
CHUNK_BYTES = 8 * 2**20
GROUP_DOCUMENTS = 256  # looked up and cut at once; a new index learns its fields from the first of them
GROUP_BYTES = 4 * 2**20
KEPT = {"task", "demonstrations", "demos", "demos_k", "boost"}  # by an index that is made anew
DUPLICATE_ID = "duplicate id"


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far a run is: documents encoded or found unchanged, passages encoded, bytes of the corpus that they take.

    What is encoded is stored next. `bytes_total` is 0 where the size is unknown (a pipe).
    """

    stage: Literal["encode", "optimize"]
    documents: int
    passages: int
    bytes_done: int
    bytes_total: int


Progress = Callable[[IndexProgress], None]


@dataclass
class IndexReport:
    """What a run did. `documents`, `passages`: what the index holds now; `encoded`: new passages.

    `inferred`: the fields whose types this run inferred; `unfit`: how many documents have other values in a field whose
    type was inferred, which filters do not find; `absent`: the fields that this run declared and no document has.
    """

    name: str
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: int = 0
    documents: int = 0
    passages: int = 0
    encoded: int = 0
    prune_withheld: bool = False
    inferred: dict[str, FieldType] = field(default_factory=dict)
    unfit: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    seconds: float = 0.0
    problem_counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def index_corpus(
    corpus: Corpus | Path,
    *,
    name: str,
    encoder: "Encoder",
    home: Home | None = None,
    task: str | None = None,
    demonstrations: "Sequence[Demonstration] | None" = None,
    fields: Mapping[str, FieldType] | None = None,
    prune: bool = False,
    quantize: Literal["int8"] | None = None,
    first_stage: int | None = None,
    rebuild: bool = False,
    layout: "Layout | None" = None,
    progress: Progress | None = None,
) -> IndexReport:
    """Index a corpus, or the one in a file or folder, under a name, into `home` (None: EPIC_SEARCH_HOME or `indexes`).

    Documents that are stored and have not changed are not encoded again; changed ones are replaced; `prune` removes
    those that the corpus does not hold (not while rows that may hold them cannot be read). A task or demonstrations
    given here stay with the index; None keeps what it has, "" or [] clears it. `fields` declares the types of fields
    for filters; those of a new index that are not declared are inferred from its first documents. A document that does
    not fit a declared type is skipped; another type than a field has is refused where most of the first documents do
    not fit it. `quantize` makes a new index that is searched by codes of one byte a number;
    `first_stage` one that is searched by the first so many dimensions, which the encoder must have been trained for.
    On a server, `rebuild` makes the index anew beside the old one, whose task and demonstrations it keeps and whose
    name it takes when it is complete, and `layout` says how the server keeps a new one. `progress` is called from
    another thread, one call at a time. Raises UserError for what a user can put right; nothing stored is lost by that.
    """
    with (
        closing(target_place(name, home, encoder=encoder, rebuild=rebuild, layout=layout)) as place,
        corpus if isinstance(corpus, Corpus) else Corpus(corpus) as corpus,
    ):
        manifest = _manifest(place, encoder)
        if first_stage is not None:
            _require_trained(first_stage, encoder)
        corpus.require_some()
        groups = _groups(iter(corpus))
        sample = next(groups)
        prompt = new_prompt(manifest, encoder=encoder, task=task, demonstrations=demonstrations)
        # Nothing is made before here, so that a mistyped command leaves nothing behind.
        with place.lock() as lock:
            is_new = place.manifest() is None
            manifest = _manifest(place, encoder)
            types = _learn(manifest, sample, encoder) if is_new else {}
            if is_new:
                manifest.quantize, manifest.first_stage = quantize, first_stage
            else:
                require_fitting(fields or {}, manifest.types, sample)
            for option, wanted, has in (
                ("--quantize", quantize, manifest.quantize),
                ("--first-stage", first_stage, manifest.first_stage),
            ):
                if wanted not in (None, has):
                    raise UserError(
                        f"index '{name}' was made without {option} {wanted}, which only a new index takes; "
                        "index under another name, or delete it first"
                    )
            manifest.types |= {name: Field(type=kind) for name, kind in (fields or {}).items()}
            was_complete = manifest.status == "complete"
            if prompt is not None:
                place.keep_prompt(manifest, prompt, encoder=encoder)
            manifest.status, manifest.source, manifest.indexed = "indexing", corpus.origin, now()
            place.save(manifest)
            with place.contents(manifest, lock) as contents:
                run = _Run(corpus, encoder, contents, manifest, place, progress)
                run.report.inferred = {name: kind for name, kind in types.items() if manifest.types[name].inferred}
                report = run.index(chain([sample], groups), prune=prune, was_complete=was_complete)
                here = set(manifest.fields)
                report.absent = [name for name in fields or {} if not {name, name.split(".")[0]} & here]
                place.settle(manifest, encoder=encoder, contents=contents)
                return report


def _manifest(place: Place, encoder: "Encoder") -> Manifest:
    manifest = place.manifest()
    if manifest is None:
        old = place.predecessor()
        return Manifest(
            name=place.name,
            encoder=encoder.reference,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
            cut_to=encoder.config.dim,
            **({} if old is None else old.model_dump(include=KEPT)),
        )
    manifest.require_encoder(encoder)
    return manifest


def _require_trained(first_stage: int, encoder: "Encoder") -> None:
    widths = [width for width in encoder.config.matryoshka or [] if width < encoder.dim]
    if first_stage not in widths:
        trained = f"for {' or '.join(map(str, widths))}; give one of these" if widths else "for none; leave it out"
        raise UserError(
            f"a first stage of {first_stage} dimensions finds the right passages only with an encoder that was trained "
            f"for shorter vectors of that width, and '{encoder.name}' was trained {trained} (objective.matryoshka in "
            "a recipe trains others)"
        )


def _learn(manifest: Manifest, sample: list[Document], encoder: "Encoder") -> dict[str, FieldType]:
    """Note in a new index's manifest what its first documents tell: the types of fields, the length of passages."""
    texts = [text for document in cut(sample, encoder) for text in document.texts]
    manifest.lexical = StoredLexical(average_length=average_length(texts))
    types = inferred(sample)
    manifest.types = {name: Field(type=kind, inferred=True) for name, kind in types.items()}
    return types


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Changed documents, how many unchanged ones were read with them, and how far into the corpus that was."""

    documents: list[CutDocument]
    unchanged: int
    bytes_read: int

    @property
    def texts(self) -> list[str]:
        return [text for document in self.documents for text in document.texts]


class _Run:
    """One pass over a corpus."""

    def __init__(
        self,
        corpus: Corpus,
        encoder: "Encoder",
        contents: IndexContents,
        manifest: Manifest,
        place: Place,
        progress: Progress | None,
    ) -> None:
        self.corpus = corpus
        self.encoder = encoder
        self.contents = contents
        self.manifest = manifest
        self.place = place
        self.progress = progress or (lambda _: None)
        self.fields: set[str] = set()
        self.report = IndexReport(name=manifest.name)
        self.done = IndexProgress("encode", 0, 0, 0, corpus.bytes_total)
        self.encoding = Stage(self._encode)
        self.storing = Stage(self._store)

    def index(self, groups: Iterator[list[Document]], *, prune: bool, was_complete: bool) -> IndexReport:
        """Store what is new or changed, remove what is gone if `prune`, and mark the index complete."""
        report, start = self.report, time.monotonic()
        with self.storing, self.encoding:
            for chunk in self._chunks(groups):
                self.encoding.give(chunk)
        # A row that could not be read may hold a document that is stored: it is not known to be gone.
        report.prune_withheld = prune and self.corpus.problems.nameless > 0
        if prune and not report.prune_withheld:
            for document_id in self.corpus.problems.ids:
                self.contents.first_sight(document_id)
            report.removed = self.contents.remove_unseen()
        if report.encoded or report.removed or not was_complete:
            self.progress(replace(self.done, stage="optimize"))
            self.contents.optimize()
        self.manifest.status = "complete"
        self.manifest.fields = sorted(
            self.fields if prune and not report.prune_withheld else self.fields.union(self.manifest.fields)
        )
        self._save_manifest()
        report.documents, report.passages = self.contents.documents, self.contents.passages
        report.problem_counts = dict(self.corpus.problems.counts)
        report.problems = self.corpus.problems.first
        report.skipped = self.corpus.problems.total
        report.seconds = time.monotonic() - start
        return report

    def _chunks(self, groups: Iterator[list[Document]]) -> Iterator[_Chunk]:
        """Changed documents, cut, about CHUNK_PASSAGES passages at a time; and how far reading is where none are."""
        documents: list[CutDocument] = []
        unchanged = 0
        try:
            for group in groups:
                known = self.report.unchanged
                documents += cut(self._changed(group), self.encoder)
                unchanged += self.report.unchanged - known
                if _is_full(documents) or not documents:
                    yield _Chunk(documents, unchanged, self.corpus.bytes_read)
                    documents, unchanged = [], 0
        except UserError:  # reading ended early: what came before is stored, then the error goes on
            if documents:
                yield _Chunk(documents, unchanged, self.corpus.bytes_read)
            raise
        if documents:
            yield _Chunk(documents, unchanged, self.corpus.bytes_read)

    def _changed(self, group: list[Document]) -> list[Document]:
        # Of two documents with one id the first wins: a stream does not know what is to come, and a second
        # run on the same file chooses the same one and encodes nothing.
        fresh = []
        declared: dict[str, FieldType] = {
            name: typed.type for name, typed in self.manifest.types.items() if not typed.inferred
        }
        for document in filter(self._fits, (read_texts(document, declared) for document in group)):
            self.fields.update(document.payload)
            if self.contents.first_sight(document.id):
                fresh.append(document)
            else:
                self.corpus.skip(Problem(document.place, DUPLICATE_ID, f"'{document.id}'", document.id))
        stored = self.contents.versions([document.id for document in fresh])
        changed = [document for document in fresh if stored.get(document.id) != version(document)]
        self.report.unchanged += len(fresh) - len(changed)
        return changed

    def _fits(self, document: Document) -> bool:
        """Whether a document's fields have values of their types; what was inferred is only counted."""
        for name, typed in self.manifest.types.items():
            value = misfit(document, name, typed.type)
            if value is not None and typed.inferred:
                self.report.unfit[name] = self.report.unfit.get(name, 0) + 1
            elif value is not None:
                detail = f"id '{document.id}', field '{name}' is {typed.type} and has {value}"
                self.corpus.skip(Problem(document.place, "value does not fit its field", detail, document.id))
                return False
        return True

    def _encode(self, chunk: _Chunk) -> None:
        """The second stage: gives what it made to the third."""
        texts, before, encoded = chunk.texts, self.done, 0

        def more(passages: int) -> None:
            nonlocal encoded
            if self.encoding.stopping:
                raise KeyboardInterrupt
            encoded += passages
            self._tell(before, chunk, encoded / len(texts))

        if not texts:
            self._tell(before, chunk, 1.0)
            return
        ids = [ids for document in chunk.documents for ids in document.ids]
        vectors_PE = self.encoder.encode_passages(texts, ids=ids, progress=more)
        self._require_sound(chunk.documents, vectors_PE)
        self.storing.give((chunk.documents, vectors_PE))

    def _store(self, encoded: tuple[list[CutDocument], np.ndarray]) -> None:
        """The third stage."""
        documents, vectors_PE = encoded
        replaced = self.contents.put(documents, vectors_PE)
        self.report.changed += replaced
        self.report.added += len(documents) - replaced
        self.report.encoded += len(vectors_PE)
        self._save_manifest()

    def _require_sound(self, chunk: list[CutDocument], vectors_PE: np.ndarray) -> None:
        bad = first_bad_vector(vectors_PE)
        if bad is None:
            return
        owner = [document.document for document in chunk for _ in document.passages][bad]
        raise UserError(
            f"encoder '{self.encoder.name}' made a vector that is not finite or not of unit length from "
            f"document '{owner.id}' ({owner.place}), and its chunk was not stored; "
            "load the encoder in float32, or take the document out"
        )

    def _save_manifest(self) -> None:
        self.manifest.documents, self.manifest.passages = self.contents.documents, self.contents.passages
        self.place.save(self.manifest)

    def _tell(self, before: IndexProgress, chunk: _Chunk, part: float) -> None:
        """Report what was done before a chunk, and this part of it."""
        passages = sum(len(document.texts) for document in chunk.documents)
        self.done = replace(
            before,
            documents=before.documents + chunk.unchanged + int(len(chunk.documents) * part),
            passages=before.passages + int(passages * part),
            bytes_done=before.bytes_done + int((chunk.bytes_read - before.bytes_done) * part),
        )
        self.progress(self.done)


def _is_full(chunk: list[CutDocument]) -> bool:
    passages = sum(len(cut_document.passages) for cut_document in chunk)
    return passages >= CHUNK_PASSAGES or sum(cut_document.document.size for cut_document in chunk) > CHUNK_BYTES


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists bounded in number and in bytes."""
    group: list[Document] = []
    size = 0
    try:
        for document in documents:
            group.append(document)
            size += document.size
            if len(group) == GROUP_DOCUMENTS or size > GROUP_BYTES:
                yield group
                group, size = [], 0
    except UserError:  # reading ended early: what came before goes first
        if group:
            yield group
        raise
    if group:
        yield group
