"""An index moved between this machine and a Qdrant server, with its vectors as they are: nothing is encoded again."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from epic_search.errors import UserError
from epic_search.index.checksum import checksum
from epic_search.index.contents import Contents
from epic_search.index.folder import existing_index, make_folder, target_folder
from epic_search.index.lock import Lock
from epic_search.index.manifest import MANIFEST_FILE, Manifest
from epic_search.index.mark import VERSION, marked, unmarked
from epic_search.index.server_contents import ServerContents
from epic_search.index.server_place import existing_collection, target_collection
from epic_search.index.store.collection import Layout
from epic_search.index.store.connection import Server
from epic_search.index.store.protocol import Point, Schema, Sparse, StoredPoint, VectorStore, pages_of
from epic_search.index.store.server import ServerStore
from epic_search.index.taught import QUERY
from epic_search.index.taught_folder import TaughtFolder
from epic_search.index.taught_pair import PAIR_FIELDS
from epic_search.index.taught_place import TaughtPlace

CHECKED_POINTS = 200
ANY = Schema({})  # of a store that is only read from end to end
NO_TERMS = Sparse(np.empty(0, np.uint32), np.empty(0, np.float32))

Progress = Callable[[int, int], None]  # points done, points in all


@dataclass(frozen=True, slots=True)
class PromoteReport:
    """What was moved. `sent`: passages that were not there yet; `checked`: passages read back and compared.

    `taught`: taught pairs, all of which are there.
    """

    name: str
    documents: int
    passages: int
    sent: int
    checked: int
    seconds: float
    taught: int


def promote(
    name: str,
    *,
    home: Path | None,
    server: Server,
    target: str | None = None,
    layout: Layout | None = None,
    quantize: Literal["int8"] | None = None,
    progress: Progress | None = None,
) -> PromoteReport:
    """Copy an index of this machine to a server, under the name `target` (None: its own).

    It becomes visible there in one step, after its count and a sample of its points were compared; an index of that
    name and encoder is replaced, and what was taught to either is taught to the copy. Cut short, the next call goes on.
    `layout` and `quantize` are the copy's. Raises UserError when the index is not complete, and when another encoder
    made the one that is there.
    """
    start, target = time.monotonic(), target or name
    folder = existing_index(name, home)
    with Lock(folder) as lock:
        manifest = Manifest.load(folder)
        if manifest.status != "complete":
            raise UserError(f"index '{name}' is not complete; index its corpus again, then promote it")
        with (
            Contents(folder, manifest, lock=lock) as contents,
            closing(
                target_collection(
                    target, server, fingerprint=manifest.fingerprint, rebuild=True, hidden=True, layout=layout
                )
            ) as place,
        ):
            if (there := place.predecessor()) is not None and there.fingerprint != manifest.fingerprint:
                raise UserError(
                    f"index '{target}' at {server} was made by encoder '{there.encoder}' and this one by "
                    f"'{manifest.encoder}'; promote it under another name with --as, or delete that one"
                )
            copy = manifest.model_copy(update={"name": target, "status": "indexing", "taught": 0, "quantize": quantize})
            if (begun := place.manifest()) is not None and begun.store_schema() != copy.store_schema():
                place.begin_anew()
            place.save(copy)
            with place.contents(copy, None) as there_now:
                sent, sample = _send(contents, there_now.store, progress)
                checked = _compare(sample, there_now.store, passages=contents.passages)
            place.save_ways(copy)
            copy.status = "complete"
            copy.documents, copy.passages = contents.documents, contents.passages
            place.save(copy)
            # Where the copy is, and not before: the pairs belong to its name.
            taught = _copy_taught(TaughtFolder(folder, manifest, lock), place.taught_place(copy, None))
            seconds = time.monotonic() - start
            return PromoteReport(target, contents.documents, contents.passages, sent, checked, seconds, taught)


def pull(
    name: str, *, home: Path | None, server: Server, target: str | None = None, progress: Progress | None = None
) -> PromoteReport:
    """Copy an index of a server to this machine, under the name `target` (None: its own).

    Raises UserError when there is an index of that name here, and when the one there holds documents in part.
    """
    start, target = time.monotonic(), target or name
    folder = target_folder(target, home)
    if (folder / MANIFEST_FILE).exists() and Manifest.load(folder).documents:
        raise UserError(f"there is an index '{target}' in {folder.parent}; pull under another name with --as")
    with closing(existing_collection(name, server)) as place:
        manifest = place.manifest()
        assert manifest is not None, name
        fresh = {"status": "indexing", "documents": 0, "passages": 0, "taught": 0, "quantize": None}
        copy = manifest.model_copy(update={"name": target, **fresh})
        make_folder(folder)
        with Lock(folder) as lock, place.contents(manifest, None) as there:
            copy.save(folder)
            with Contents(folder, copy, lock=lock) as contents:
                documents, sample = _fetch(there, contents.store, progress)
                checked = _compare(sample, contents.store, passages=there.passages)
                contents.adopt(documents)
                copy.taught = _copy_taught(place.taught_place(manifest, None), TaughtFolder(folder, copy, lock))
                copy.status = manifest.status
                copy.documents, copy.passages = contents.documents, contents.passages
                copy.save(folder)
                seconds = time.monotonic() - start
                return PromoteReport(
                    target, copy.documents, copy.passages, copy.passages, checked, seconds, copy.taught
                )


def _copy_taught(source: TaughtPlace, target: TaughtPlace) -> int:
    """Bring all taught pairs, beside those that are there; returns how many."""
    pairs = source.open(ANY)
    if pairs is None:
        return 0
    with closing(pairs):
        store, sent = None, list[str]()
        for page in pages_of(pairs, having=PAIR_FIELDS):
            if store is None:
                schema = Schema({name: len(vector_E) for name, vector_E in page[0].dense.items()})
                store = target.open(schema) or target.create(schema)
            _put(store, [(stored.point, stored) for stored in page])
            sent += [stored.point.id for stored in page]
        if store is None:
            return 0
        with closing(store):
            store.flush()
            held = len(store.vectors(sent, name=QUERY))
    if held != len(sent):
        raise UserError(f"the copy holds {held:,} of {len(sent):,} taught pairs; repeat the command")
    return held


def _send(contents: Contents, store: ServerStore, progress: Progress | None) -> tuple[int, list[StoredPoint]]:
    """Bring what `store` lacks, and remove what an earlier try left in it.

    Returns how many points were sent, and some of all.
    """
    sent = done = 0
    sample: list[StoredPoint] = []
    for page in pages_of(contents.store):
        sample += _some(page, contents.passages)
        known = store.having([stored.point.id for stored in page])
        fresh = [stored for stored in page if stored.point.id not in known]
        rows = contents.listed([stored.point.payload["id"] for stored in fresh])
        if fresh:
            _put(store, [(_marked(stored, *rows[stored.point.payload["id"]]), stored) for stored in fresh])
        sent += len(fresh)
        done += len(page)
        if progress is not None:
            progress(done, contents.passages)
    if store.count() != contents.passages:
        store.delete(list(_strays(contents, store)))
    return sent, sample


def _fetch(
    there: ServerContents, store: VectorStore, progress: Progress | None
) -> tuple[list[tuple[str, bytes, int, int]], list[StoredPoint]]:
    """Bring everything into an empty store.

    Returns each document's id, version, number of passages and checksum, and some of the points.
    """
    done: dict[tuple[str, str, int], tuple[int, int]] = {}
    sample: list[StoredPoint] = []
    read = 0
    for page in pages_of(there.store):
        sample += _some(page, there.passages)
        rows = []
        for stored in page:
            id = stored.point.payload.get("id")
            point, mark = unmarked(stored.point)
            if id is None or mark is None:
                raise UserError(f"point {point.id} there is no passage of a document; see 'epic-search indexes verify'")
            sum = checksum(point, stored.dense[""])
            if mark.checksum not in (None, sum):
                raise UserError(
                    f"passage {point.payload['passage']} of document '{id}' is not what was stored there (checksum); "
                    "see 'epic-search indexes verify'"
                )
            held, total = done.get((id, mark.version, mark.passages), (0, 0))
            done[id, mark.version, mark.passages] = held + 1, total + sum
            rows.append((point, stored))
        _put(store, rows)
        read += len(page)
        if progress is not None:
            progress(read, there.passages)
    store.flush()
    for (id, _, passages), (held, _) in done.items():
        if held != passages:
            raise UserError(
                f"document '{id}' is there in part, {held} of {passages} passages: a run was cut off; index there again"
            )
    documents = [(id, bytes.fromhex(version), held, sum) for (id, version, _), (held, sum) in done.items()]
    return documents, sample


def _some(page: Sequence[StoredPoint], of: int) -> list[StoredPoint]:
    """A random part of a page, so large that about CHECKED_POINTS come together from `of` points."""
    return [stored for stored in page if random.random() * of < CHECKED_POINTS]


def _put(store: VectorStore, rows: Sequence[tuple[Point, StoredPoint]]) -> None:
    """Store points with the vectors of others."""
    dense = {name: np.stack([stored.dense[name] for _, stored in rows]) for name in rows[0][1].dense}
    sparse = [stored.sparse or NO_TERMS for _, stored in rows] if store.schema.lexical else None
    store.upsert([point for point, _ in rows], dense, sparse=sparse)


def _strays(contents: Contents, store: ServerStore) -> Iterator[str]:
    """Points of documents, or of versions, that the index does not hold."""
    for point in store.points(["id", VERSION]):
        id = point.payload.get("id")
        stored = contents.versions([id]).get(id) if isinstance(id, str) else None
        if stored is None or stored.hex() != point.payload.get(VERSION):
            yield point.id


def _compare(sample: Sequence[StoredPoint], stored: VectorStore, *, passages: int) -> int:
    """Raise UserError unless a store holds so many points, and these among them; returns how many these are."""
    if (held := stored.count()) != passages:
        raise UserError(f"the copy holds {held:,} of {passages:,} passages; repeat the command")
    for name in stored.schema.dense:
        vectors = stored.vectors([one.point.id for one in sample], name=name)
        for one in sample:
            if name in one.dense and not np.allclose(vectors.get(one.point.id, np.nan), one.dense[name], atol=1e-6):
                raise UserError(
                    f"the copy's vector of passage {one.point.payload['passage']} of document "
                    f"'{one.point.payload['id']}' is not the one that was sent; repeat the command"
                )
    return len(sample)


def _marked(stored: StoredPoint, version: bytes, passages: int) -> Point:
    return marked(stored.point, stored.dense[""], version=version, passages=passages)
