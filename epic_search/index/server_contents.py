"""What an index on a server holds. There is no list beside it: every point says which document it is part of.

A point carries its document's id and version and the number of its passages, so a document is stored when all of them
are there in one version and no other is. The points of a changed document are written beside the old ones, which go
afterwards; a run that was cut off in between leaves a document in two versions or in part, and the next one that sees
it stores it anew.
"""

import math
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from epic_search.index.contents import passage_points
from epic_search.index.filters import Compare, FieldType
from epic_search.index.lexical import Lexical
from epic_search.index.mark import PASSAGES, VERSION, marked
from epic_search.index.passages import CutDocument, point_id
from epic_search.index.store.protocol import PASSAGE_FIELDS, is_ours
from epic_search.index.store.server import ServerStore

if TYPE_CHECKING:
    from epic_search.index.audit import Audit, Progress

REMOVED_AT_ONCE = 1000  # documents whose points are looked for in one request
COUNT_SECONDS = 5.0  # how old the number of passages may be while an index is only read
FIELDS: dict[str, FieldType] = {"id": "keyword", "passage": "int"}  # what is looked up by


class ServerContents:
    """An open index on a server. Raises UserError when the server fails for good."""

    def __init__(self, store: ServerStore, lexical: Lexical | None) -> None:
        self.store = store
        self.lexical = lexical
        self._seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # a file that goes when closed
        self._passages, self._counted = 0, -math.inf
        self._seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")

    @property
    def documents(self) -> int:
        """How many documents there are; one that is there in part counts where its first passage is."""
        return self.store.count(Compare("passage", "=", 0))

    @property
    def passages(self) -> int:
        """How many passages there are, at most some seconds ago."""
        if time.monotonic() - self._counted > COUNT_SECONDS:
            self._passages, self._counted = self.store.count(Compare("passage", ">=", 0)), time.monotonic()
        return self._passages

    def close(self) -> None:
        """Close the list of what this run saw."""
        self._seen.close()
        self.store.close()

    def __enter__(self) -> "ServerContents":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def first_sight(self, document_id: str) -> bool:
        """Note that this run saw a document; False if it did before."""
        return self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (document_id,)).rowcount == 1

    def versions(self, document_ids: Sequence[str]) -> dict[str, bytes]:
        """The stored version of each document that is stored whole, and in one version only."""
        return {id: bytes.fromhex(one.version) for id, one in self._stored(document_ids).items() if one.is_whole}

    def points_of(self, document_id: str) -> list[str]:
        """The ids of a document's points, in the order of its passages; none for one that is not stored whole."""
        document = self._stored([document_id]).get(document_id)
        if document is None or not document.is_whole:
            return []
        return [point_id(document_id, bytes.fromhex(document.version), n) for n in range(document.passages)]

    def ids_near(self, document_id: str) -> list[str]:
        """Nothing: a server has no order of ids to look in."""
        return []

    def put(self, chunk: Sequence[CutDocument], vectors_PE: np.ndarray) -> int:
        """Store documents in place of their older versions, safely on return. Returns how many had one.

        `vectors_PE`: the unit vectors of all their passages, in order.
        """
        stored = self._stored([cut.document.id for cut in chunk])
        vectors = iter(vectors_PE)
        points = [
            marked(point, next(vectors), version=cut.version, passages=len(cut.passages))
            for cut in chunk
            for point in passage_points(cut)
        ]
        lexical = self.lexical
        sparse = None if lexical is None else [lexical.of_passage(text) for cut in chunk for text in cut.texts]
        self.store.upsert(points, {"": vectors_PE}, sparse=sparse)
        new = {point.id for point in points}
        self.store.delete([id for document in stored.values() for id in document.points if id not in new])
        self._counted = -math.inf
        return len(stored)

    def remove_unseen(self) -> int:
        """Remove the documents that this run did not see; returns how many those were."""
        doomed: list[str] = []
        documents = set()
        for point in self.store.points(PASSAGE_FIELDS):
            if not is_ours(point.payload):
                continue
            id = point.payload["id"]
            if self._seen.execute("SELECT 1 FROM seen WHERE id = ?", (id,)).fetchone() is None:
                doomed.append(point.id)
                documents.add(id)
        self.store.delete(doomed)
        self._counted = -math.inf
        return len(documents)

    def remove(self, document_ids: Sequence[str]) -> int:
        """Remove these documents, in whatever versions; returns how many of them there were."""
        gone = 0
        for first in range(0, len(document_ids), REMOVED_AT_ONCE):
            stored = self._stored(document_ids[first : first + REMOVED_AT_ONCE])
            self.store.delete([id for document in stored.values() for id in document.points])
            gone += len(stored)
        self._counted = -math.inf
        return gone

    def audit(self, *, sample: int = 0, progress: "Progress | None" = None) -> "Audit":
        """Read everything, and hold each point against its mark; `sample` points are kept."""
        from epic_search.index.audit import audit_marked

        return audit_marked(self, sample=sample, progress=progress)

    def optimize(self) -> None:
        """Nothing to do: a server optimizes by itself."""
        self.store.optimize()

    def _stored(self, document_ids: Sequence[str]) -> dict[str, "_Stored"]:
        found: dict[str, _Stored] = {}
        fields = ["id", VERSION, PASSAGES]
        for point in self.store.points(fields, having=("id", document_ids)):
            if not is_ours(point.payload, fields):
                continue
            document = found.setdefault(point.payload["id"], _Stored())
            document.points.append(point.id)
            document.versions.add(point.payload[VERSION])
            document.passages = point.payload[PASSAGES]
        return found


@dataclass
class _Stored:
    """The points of a document that a server has."""

    points: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    passages: int = 0

    @property
    def version(self) -> str:
        (version,) = self.versions
        return version

    @property
    def is_whole(self) -> bool:
        return len(self.versions) == 1 and len(self.points) == self.passages
