"""An index read from one end to the other: whether every passage is there, and is what was stored."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.index.checksum import checksum
from epic_search.index.mark import unmarked
from epic_search.index.passages import point_id
from epic_search.index.store.protocol import StoredPoint, first_bad_vector, pages_of

if TYPE_CHECKING:
    from epic_search.index.contents import Contents
    from epic_search.index.server_contents import ServerContents

Progress = Callable[[int, int], None]  # passages read, passages there should be


@dataclass
class Audit:
    """What was found. `missing`, `changed`, `unsound`: ids of documents; `unlisted`: ids of points of no document.

    `missing_is`, `unlisted_is`: what these two are, in words.
    """

    missing_is: str
    unlisted_is: str

    read: int = 0
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    without_checksum: int = 0
    sample: list[StoredPoint] = field(default_factory=list)

    @property
    def lost(self) -> list[str]:
        """The documents of which something is not there as it was stored."""
        return sorted({*self.missing, *self.changed, *self.unsound})


def audit_listed(contents: "Contents", *, sample: int, progress: Progress | None) -> Audit:
    """Hold the store against the list of documents; `sample` of the listed points are kept."""
    result, unsound = Audit("lack passages that are listed", "not listed"), set[str]()
    for page in pages_of(contents.store):
        entries = contents.listed({id for stored in page if (id := _document_id(stored)) is not None})
        sums: dict[str, tuple[int, int]] = {}
        for stored in page:
            id = _document_id(stored)
            if id is None or not _is_passage(stored, entries.get(id)):
                result.unlisted.append(stored.point.id)
                continue
            vector_E = stored.dense.get("")
            if vector_E is None or first_bad_vector(vector_E[None]) is not None:
                unsound.add(id)
                vector_E = np.zeros(0, np.float32) if vector_E is None else vector_E
            passages, total = sums.get(id, (0, 0))
            sums[id] = (passages + 1, total + checksum(stored.point, vector_E))
            if len(result.sample) < sample:
                result.sample.append(stored)
        contents.note_found(sums)
        result.read += len(page)
        if progress is not None:
            progress(result.read, contents.passages)
    result.missing, result.changed, result.without_checksum = contents.differences()
    result.unsound = sorted(unsound)
    return result


def _document_id(stored: StoredPoint) -> str | None:
    id = stored.point.payload.get("id")
    return id if isinstance(id, str) else None


def _is_passage(stored: StoredPoint, entry: tuple[bytes, int] | None) -> bool:
    """Whether a point is the passage of a listed document that it says it is."""
    if entry is None:
        return False
    payload: dict[str, Any] = stored.point.payload
    version, passages = entry
    number = payload.get("passage")
    return (
        isinstance(number, int)
        and 0 <= number < passages
        and point_id(payload["id"], version, number) == stored.point.id
    )


def audit_marked(contents: "ServerContents", *, sample: int, progress: Progress | None) -> Audit:
    """Hold every point against its mark, which says what document it is part of; `sample` sound ones are kept."""
    result = Audit("are stored in part, or in two versions", "no passage of any document")
    with closing(sqlite3.connect("")) as found:  # a file that is deleted with the connection
        found.execute(
            "CREATE TABLE found (id TEXT, version TEXT, passages INTEGER, read INTEGER, unsummed INTEGER, "
            "changed INTEGER, unsound INTEGER, PRIMARY KEY (id, version)) WITHOUT ROWID"
        )
        for page in pages_of(contents.store):
            rows = []
            for stored in page:
                id = _document_id(stored)
                point, mark = unmarked(stored.point)
                if id is None or mark is None or not _is_passage(stored, (bytes.fromhex(mark.version), mark.passages)):
                    result.unlisted.append(point.id)
                    continue
                vector_E = stored.dense.get("")
                is_unsound = vector_E is None or first_bad_vector(vector_E[None]) is not None
                sum = None if vector_E is None else checksum(point, vector_E)
                is_changed = mark.checksum is not None and sum != mark.checksum
                rows.append((id, mark.version, mark.passages, mark.checksum is None, is_changed, is_unsound))
                if len(result.sample) < sample and not is_unsound:
                    result.sample.append(stored)
            found.executemany(
                "INSERT INTO found VALUES (?, ?, ?, 1, ?, ?, ?) ON CONFLICT DO UPDATE SET read = read + 1, "
                "unsummed = unsummed + excluded.unsummed, changed = changed + excluded.changed, "
                "unsound = unsound + excluded.unsound",
                rows,
            )
            result.read += len(page)
            if progress is not None:
                progress(result.read, contents.passages)
        documents = "SELECT id FROM found GROUP BY id HAVING"
        result.missing = [id for (id,) in found.execute(f"{documents} COUNT(*) > 1 OR SUM(read) != SUM(passages)")]
        result.changed = [id for (id,) in found.execute(f"{documents} SUM(changed)")]
        result.unsound = [id for (id,) in found.execute(f"{documents} SUM(unsound)")]
        result.without_checksum = len(found.execute(f"{documents} SUM(unsummed)").fetchall())
    return result
