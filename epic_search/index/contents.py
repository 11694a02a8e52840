"""What an index holds: a list of documents in SQLite and their passages' vectors in the store, kept in step.

The list is the truth. A chunk is stored in four steps, and a crash between any two loses nothing listed: note
the new points as doomed; write and flush them; in one transaction list the new versions and doom the points
of those they replace; delete the doomed. Opening deletes what a crash left doomed. After that the store holds
exactly the listed points; one that does not is damaged. Documents that were stored since there are checksums have one
in the list.
"""

import shutil
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from epic_search.errors import UserError
from epic_search.index.checksum import MASK, checksum
from epic_search.index.disk import disk_full, disk_usage, require_space
from epic_search.index.lexical import Lexical
from epic_search.index.passages import CutDocument, point_id
from epic_search.index.store.edge import EdgeStore, StoreDamaged
from epic_search.index.store.protocol import Point

if TYPE_CHECKING:
    from epic_search.index.audit import Audit, Progress
    from epic_search.index.lock import Lock
    from epic_search.index.manifest import Manifest
    from epic_search.index.store.protocol import VectorStore

LIST_FILE = "documents.sqlite"
STORE_FOLDER = "store"
DOOMED_AT_ONCE = 1000  # documents whose points are deleted in one request
NEIGHBOURS = 300  # ids before and after one that is not there, among which it may be misspelt

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, version BLOB NOT NULL, passages INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doomed (
    id TEXT, version BLOB, passages INTEGER NOT NULL, PRIMARY KEY (id, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checksums (
    id TEXT PRIMARY KEY, version BLOB NOT NULL, checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TEMPORARY TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TEMPORARY TABLE found (id TEXT PRIMARY KEY, passages INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
"""


class Contents:
    """An open index. Raises UserError when its files are damaged or the disk is full.

    One thread may put documents in while another looks up what is there.
    """

    def __init__(self, folder: Path, manifest: "Manifest", *, lock: "Lock", complete: bool = True) -> None:
        """Open what is in `folder`, or begin with nothing; puts right what a killed run left behind.

        With `complete=False` the store may hold more or less than is listed: to find out what, and to repair it.
        """
        self.folder = folder
        self._one_at_a_time = threading.RLock()  # a connection has one transaction, whichever thread began it
        with self._readable():
            self._list = sqlite3.connect(folder / LIST_FILE, isolation_level=None, check_same_thread=False)
        try:
            with self._readable():
                self._list.execute("PRAGMA synchronous = FULL")
                self._list.executescript(SCHEMA)
                self.documents, self.passages = self._totals("FROM documents")
            if manifest.documents and not self.documents:
                raise self._damaged(f"{LIST_FILE} lists none of {manifest.documents:,} documents")
            self.lexical = Lexical(manifest.lexical.average_length) if manifest.lexical is not None else None
            self.store: VectorStore = self._open_store(manifest, lock)
            try:
                self._delete_doomed()
                stored = self.store.count()
                if complete and stored != self.passages:
                    raise self._damaged(f"its store holds {stored:,} of {self.passages:,} passages")
            except BaseException:
                self.store.close()
                raise
        except BaseException:
            self._list.close()
            raise

    def close(self) -> None:
        """Close the list and the store."""
        try:
            self.store.close()
        finally:
            self._list.close()

    def __enter__(self) -> "Contents":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def first_sight(self, document_id: str) -> bool:
        """Note that this run saw a document; False if it did before."""
        with self._readable():
            return self._list.execute("INSERT OR IGNORE INTO seen VALUES (?)", (document_id,)).rowcount == 1

    def versions(self, document_ids: Sequence[str]) -> dict[str, bytes]:
        """The stored version of each document that is stored."""
        with self._readable():
            return dict(
                self._list.execute(
                    f"SELECT id, version FROM documents WHERE id IN ({_marks(document_ids)})", document_ids
                )
            )

    def adopt(self, rows: Sequence[tuple[str, bytes, int, int]]) -> None:
        """List documents (id, version, passages, checksum) whose points have been put into the store, and flushed."""
        with self._transaction():
            self._list.executemany("INSERT INTO documents VALUES (?, ?, ?)", [row[:3] for row in rows])
            sums = [(id, version, checksum & MASK) for id, version, _, checksum in rows]
            self._list.executemany("INSERT INTO checksums VALUES (?, ?, ?)", sums)
            self.documents, self.passages = self._totals("FROM documents")

    def points_of(self, document_id: str) -> list[str]:
        """The ids of a stored document's points, in the order of its passages; none for a document not stored."""
        with self._readable():
            row = self._list.execute("SELECT version, passages FROM documents WHERE id = ?", (document_id,)).fetchone()
        return [point_id(document_id, row[0], number) for number in range(row[1])] if row else []

    def ids_near(self, document_id: str) -> list[str]:
        """The ids of stored documents that are written most like this one, at most three."""
        with self._readable():
            # In the order of ids, those that begin alike stand together.
            before = self._list.execute(
                "SELECT id FROM documents WHERE id < ? ORDER BY id DESC LIMIT ?", (document_id, NEIGHBOURS)
            )
            after = self._list.execute(
                "SELECT id FROM documents WHERE id >= ? ORDER BY id LIMIT ?", (document_id, NEIGHBOURS)
            )
            return get_close_matches(document_id, [id for rows in (before, after) for (id,) in rows], cutoff=0.5)

    def put(self, chunk: Sequence[CutDocument], vectors_PE: np.ndarray) -> int:
        """Store documents in place of their older versions, safely on return. Returns how many had one.

        `vectors_PE`: the unit vectors of all their passages, in order.
        """
        require_space(self.folder, 4 * (vectors_PE.nbytes + sum(cut.document.size for cut in chunk)))
        rows = [(cut.document.id, cut.version, len(cut.passages)) for cut in chunk]
        with self._transaction():
            self._list.executemany("INSERT OR REPLACE INTO doomed VALUES (?, ?, ?)", rows)
        lexical = self.lexical
        sparse = None if lexical is None else [lexical.of_passage(text) for cut in chunk for text in cut.texts]
        points = [point for cut in chunk for point in passage_points(cut)]
        self.store.upsert(points, {"": vectors_PE}, sparse=sparse)
        self.store.flush()
        ids = [cut.document.id for cut in chunk]
        replaced = f"FROM documents WHERE id IN ({_marks(ids)})"
        with self._transaction():
            old_documents, old_passages = self._totals(replaced, ids)
            self._list.execute(f"INSERT OR REPLACE INTO doomed SELECT * {replaced}", ids)
            self._list.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", rows)
            sums = _checksums(chunk, points, vectors_PE)
            self._list.executemany("INSERT OR REPLACE INTO checksums VALUES (?, ?, ?)", sums)
            self._list.executemany("DELETE FROM doomed WHERE id = ? AND version = ?", [row[:2] for row in rows])
        self.documents += len(rows) - old_documents
        self.passages += len(vectors_PE) - old_passages
        self._delete_doomed()
        return old_documents

    def remove_unseen(self) -> int:
        """Remove the documents that this run did not see; returns how many those were."""
        return self._remove("FROM documents WHERE id NOT IN (SELECT id FROM seen)")

    def remove(self, document_ids: Sequence[str]) -> int:
        """Remove these documents; returns how many of them there were."""
        ids = list(document_ids)
        parts = (ids[first : first + DOOMED_AT_ONCE] for first in range(0, len(ids), DOOMED_AT_ONCE))
        return sum(self._remove(f"FROM documents WHERE id IN ({_marks(part)})", part) for part in parts)

    def listed(self, document_ids: Collection[str]) -> dict[str, tuple[bytes, int]]:
        """Version and number of passages of each of these documents that is listed."""
        with self._readable():
            rows = self._list.execute(
                f"SELECT id, version, passages FROM documents WHERE id IN ({_marks(document_ids)})", [*document_ids]
            )
            return {id: (version, passages) for id, version, passages in rows}

    def note_found(self, found: Mapping[str, tuple[int, int]]) -> None:
        """Note how many more passages of each document the store was found to hold, and the sum of their checksums."""
        with self._transaction():
            self._list.executemany(
                "INSERT INTO found VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                f"passages = passages + excluded.passages, checksum = (checksum + excluded.checksum) & {MASK}",
                [(id, passages, checksum & MASK) for id, (passages, checksum) in found.items()],
            )

    def differences(self) -> tuple[list[str], list[str], int]:
        """What `note_found` was told, against the list.

        Returns the documents that lack passages, those whose checksum differs, and how many have none, because an
        older epic-search stored them.
        """
        compared = (
            "FROM documents AS d LEFT JOIN found AS f ON f.id = d.id "
            "LEFT JOIN checksums AS c ON c.id = d.id AND c.version = d.version WHERE"
        )
        with self._readable():
            lacking = self._list.execute(f"SELECT d.id {compared} f.passages IS NOT d.passages").fetchall()
            changed = self._list.execute(
                f"SELECT d.id {compared} f.passages = d.passages AND f.checksum != c.checksum"
            ).fetchall()
            (without,) = self._list.execute(f"SELECT COUNT(*) {compared} c.checksum IS NULL").fetchone()
        return [id for (id,) in lacking], [id for (id,) in changed], without

    def audit(self, *, sample: int = 0, progress: "Progress | None" = None) -> "Audit":
        """Read everything, and hold it against the list; `sample` points are kept."""
        from epic_search.index.audit import audit_listed

        return audit_listed(self, sample=sample, progress=progress)

    def _remove(self, which: str, values: Sequence[str] = ()) -> int:
        with self._transaction():
            documents, passages = self._totals(which, values)
            self._list.execute(f"INSERT OR REPLACE INTO doomed SELECT * {which}", values)
            self._list.execute(f"DELETE {which}", values)
            self._list.execute("DELETE FROM checksums WHERE id NOT IN (SELECT id FROM documents)")
        self.documents -= documents
        self.passages -= passages
        self._delete_doomed()
        return documents

    def optimize(self) -> None:
        """Make the store fast to search; needs free space for a second copy of it meanwhile."""
        require_space(self.folder, disk_usage(self.folder / STORE_FOLDER))
        self.store.optimize()

    def _open_store(self, manifest: "Manifest", lock: "Lock") -> EdgeStore:
        path = self.folder / STORE_FOLDER
        with self._readable():
            is_new = self.documents == 0 and self._totals("FROM doomed")[0] == 0
        if is_new:
            # Whatever is there, a run was killed while it made the store: nothing was ever listed in it.
            shutil.rmtree(path, ignore_errors=True)
            require_space(self.folder, 0)
        try:
            return EdgeStore(path, schema=manifest.store_schema(), create=is_new, keep_open=[lock.fd])
        except StoreDamaged as error:
            raise self._damaged(str(error)) from error

    def _delete_doomed(self) -> None:
        while True:
            with self._readable():
                rows = self._list.execute("SELECT * FROM doomed LIMIT ?", (DOOMED_AT_ONCE,)).fetchall()
            if not rows:
                return
            self.store.delete([point_id(id, version, n) for id, version, passages in rows for n in range(passages)])
            self.store.flush()
            with self._transaction():
                self._list.executemany("DELETE FROM doomed WHERE id = ? AND version = ?", [row[:2] for row in rows])

    def _totals(self, rows: str, values: Sequence[str] = ()) -> tuple[int, int]:
        """How many documents and passages there are in `rows`: a FROM clause over documents or doomed."""
        count, passages = self._list.execute(f"SELECT COUNT(*), COALESCE(SUM(passages), 0) {rows}", values).fetchone()
        return int(count), int(passages)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._readable():
            self._list.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._list.execute("ROLLBACK")
                raise
            self._list.execute("COMMIT")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            with self._one_at_a_time:
                yield
        except sqlite3.DatabaseError as error:
            code = error.sqlite_errorcode & 0xFF  # the low byte is the kind, the rest its details
            if code == sqlite3.SQLITE_FULL:
                raise disk_full(self.folder) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(f"{LIST_FILE}: {error}") from error
            raise UserError(f"cannot use {self.folder / LIST_FILE}: {error}; check the folder and its disk") from error

    def _damaged(self, what: str) -> UserError:
        name = self.folder.name
        return UserError(
            f"index '{name}' is damaged ({what}); put it right with 'epic-search indexes repair {name}', or delete it "
            f"with 'epic-search indexes delete {name}' and index again"
        )


def passage_points(cut: CutDocument) -> Iterable[Point]:
    """The points of a document's passages."""
    document = cut.document
    for number, text in enumerate(cut.passages):
        payload = {
            "id": document.id,
            "passage": number,
            "title": document.title,
            "text": text,
            "payload": document.payload,
        }
        yield Point(point_id(document.id, cut.version, number), payload)


def _checksums(
    chunk: Sequence[CutDocument], points: Sequence[Point], vectors_PE: np.ndarray
) -> Iterator[tuple[str, bytes, int]]:
    """(id, version, checksum) of each document."""
    passages = zip(points, vectors_PE, strict=True)
    for cut in chunk:
        total = sum(checksum(point, vector_E) for point, vector_E in islice(passages, len(cut.passages)))
        yield cut.document.id, cut.version, total & MASK


def _marks(values: Collection[str]) -> str:
    return ",".join("?" * len(values))
