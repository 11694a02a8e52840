"""Whether an index is sound: list, store and manifest agree, and every stored passage is what was stored.

The store is read from one end to the other. A passage is known by its point id, which names document, version and
number; its vector must be finite and of unit length; and the checksums of a document's passages must come to the one in
the list. Some passages are searched for by their own vector, and some are encoded again.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from epic_search.errors import UserError
from epic_search.index.audit import Audit, Progress
from epic_search.index.folder import Home
from epic_search.index.manifest import Manifest
from epic_search.index.place import IndexContents, place_of, stored_manifest
from epic_search.index.store.connection import ServerError
from epic_search.index.store.protocol import StoredPoint, StoreQuery

if TYPE_CHECKING:
    from epic_search.encoder import Encoder

SEARCHED = 64  # passages that are searched for by their own vector
FOUND_COSINE = 0.999  # least of a stored vector and itself, when it is searched for
AGAIN_COSINE = 0.99  # least of a stored vector and the same text encoded again, by another device or in int8
LOCK_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be. `documents`: the ids of those it concerns, where it is about documents."""

    what: str
    documents: list[str] = field(default_factory=list)


@dataclass
class Verification:
    """What was looked at, and what was found. Cosines are None where nothing was encoded or searched for."""

    name: str
    documents: int = 0
    passages: int = 0
    read: int = 0
    without_checksum: int = 0
    encoded: int = 0
    lowest_cosine: float | None = None
    searched: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults


def verify_index(
    name: str,
    *,
    home: Home | None = None,
    load: "Callable[[Manifest], Encoder] | None" = None,
    encode: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Read a whole index and say what is wrong with it; nothing is changed.

    `load` gives the encoder for encoding `encode` passages again. Raises UserError when there is no such index, when
    another process has it open, when its server fails, and what `load` raises; damage is never an error but a fault.
    """
    found = Verification(name)
    with ExitStack() as opened:
        place = opened.enter_context(closing(place_of(name, home)))
        lock = opened.enter_context(place.lock(wait_seconds=LOCK_WAIT_SECONDS))
        try:
            manifest = stored_manifest(place)
            contents = opened.enter_context(place.contents(manifest, lock, complete=False))
            found.documents, found.passages = contents.documents, contents.passages
            result = contents.audit(sample=max(encode, SEARCHED), progress=progress)
            found.faults += _faults(manifest, contents, result)
            found.read, found.without_checksum = result.read, result.without_checksum
            sound = [stored for stored in result.sample if stored.point.payload["id"] not in {*result.lost}]
            found.searched = len(sound[:SEARCHED])
            found.faults += _search_faults(contents, sound[:SEARCHED])
        except ServerError:
            raise
        except UserError as error:
            found.faults.append(Fault(str(error)))
            return found
    if encode and load is not None and sound:
        _encode_again(found, sound[:encode], load(manifest), manifest)
    return found


def _faults(manifest: Manifest, contents: IndexContents, result: Audit) -> list[Fault]:
    faults = []
    for what, ids in (
        (result.missing_is, result.missing),
        ("differ from what was stored (checksum)", result.changed),
        ("have a vector that is not finite or not of unit length", result.unsound),
    ):
        if ids:
            faults.append(Fault(f"{len(ids):,} of {contents.documents:,} documents {what}", ids))
    if result.unlisted:
        faults.append(Fault(f"the store holds {len(result.unlisted):,} passages that are {result.unlisted_is}"))
    counts = (manifest.documents, manifest.passages)
    if manifest.status == "complete" and counts != (contents.documents, contents.passages):
        faults.append(
            Fault(
                f"the manifest counts {counts[0]:,} documents and {counts[1]:,} passages, and there are "
                f"{contents.documents:,} and {contents.passages:,}"
            )
        )
    return faults


def _search_faults(contents: IndexContents, sample: Sequence[StoredPoint]) -> list[Fault]:
    """Passages that their own vector does not find: the files that search goes by are damaged."""
    if not sample:
        return []
    found = contents.store.search([StoreQuery(stored.dense[""]) for stored in sample], limit=1, fields=["id"])
    lost = [
        stored.point.payload["id"]
        for stored, matches in zip(sample, found, strict=True)
        if not matches or matches[0].score < FOUND_COSINE
    ]
    # A search graph is not exact, so one passage alone proves nothing.
    if len(lost) <= len(sample) // 10:
        return []
    return [Fault(f"{len(lost)} of {len(sample)} passages are not found by their own vector", lost)]


def _encode_again(found: Verification, sample: Sequence[StoredPoint], encoder: "Encoder", manifest: Manifest) -> None:
    try:
        manifest.require_encoder(encoder)
    except UserError as error:
        found.faults.append(Fault(str(error)))
        return
    payloads = [stored.point.payload for stored in sample]
    # A long title is part of the text itself (see passages.cut), so either reading may be the one that was encoded.
    readings = [
        [f"{payload['title']}\n{payload['text']}" if payload["title"] else payload["text"] for payload in payloads],
        [payload["text"] for payload in payloads],
    ]
    stored_PE = np.stack([stored.dense[""] for stored in sample])
    cosines_P = np.max([(encoder.encode_passages(texts) * stored_PE).sum(axis=1) for texts in readings], axis=0)
    found.encoded, found.lowest_cosine = len(sample), float(cosines_P.min())
    other = [payload["id"] for payload, cosine in zip(payloads, cosines_P, strict=True) if cosine < AGAIN_COSINE]
    if other:
        found.faults.append(
            Fault(
                f"{len(other)} of {len(sample)} passages have another vector when encoded again "
                f"(lowest cosine {found.lowest_cosine:.4f}, at least {AGAIN_COSINE} expected)",
                other,
            )
        )
