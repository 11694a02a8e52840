"""Puts right what can be put right in a damaged index, and says what was lost.

Step by step, and only what was agreed to: what is about to be done is said in sentences first. Files are never deleted
but set aside, in the folder `aside` of the index. On a server, where files are the server's matter, what is stored in
part or changed is removed, so that the next run over the corpus stores it anew.
"""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from epic_search.errors import UserError
from epic_search.index.audit import Progress
from epic_search.index.contents import LIST_FILE, STORE_FOLDER
from epic_search.index.folder import ASIDE_FOLDER, Home
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest, now
from epic_search.index.place import Folder, Place, place_of, stored_manifest
from epic_search.index.store.connection import ServerError
from epic_search.index.verify import LOCK_WAIT_SECONDS

WAL_FOLDER = "wal"

Agree = Callable[[str], bool]  # told what will be done; whether to do it


@dataclass
class Repair:
    """What was done and what was declined, in sentences.

    `lost`: ids of documents that are no longer in the index; `lost_all`: nothing is left in it.
    """

    name: str
    source: str = ""
    done: list[str] = field(default_factory=list)
    declined: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    lost_all: bool = False


def repair_index(name: str, *, agree: Agree, home: Home | None = None, progress: Progress | None = None) -> Repair:
    """Repair an index; raises UserError when there is none, when it is in use, and when its manifest is damaged."""
    with closing(place_of(name, home)) as place, place.lock(wait_seconds=LOCK_WAIT_SECONDS) as lock:
        repairer = _Repairer(place, stored_manifest(place), lock, agree, progress)
        if isinstance(place, Folder):
            repairer.repair_files(place.folder)
        else:
            repairer.repair_contents()
        return repairer.report


class _Unusable(Exception):
    """The store does not open, or, if `is_open`, cannot be read."""

    def __init__(self, why: BaseException, *, is_open: bool) -> None:
        super().__init__(str(why))
        self.is_open = is_open


class _Repairer:
    def __init__(
        self, place: Place, manifest: Manifest, lock: Lock | None, agree: Agree, progress: Progress | None
    ) -> None:
        self.place = place
        self.manifest = manifest
        self.lock = lock
        self.agree = agree
        self.progress = progress
        self.report = Repair(place.name, source=manifest.source)

    def repair_files(self, folder: Path) -> None:
        """First the list, then whether the store opens, then what is in it."""
        if reason := self._list_damage(folder):
            self._give_up(folder, f"the list of documents cannot be used ({reason})")
            return
        try:
            self.repair_contents()
        except _Unusable as error:
            # What was flushed is in the store's segments, and nothing is listed before it is flushed: the log holds
            # nothing that is listed. One request in it that makes the engine fail makes it fail at every opening.
            wal = folder / STORE_FOLDER / WAL_FOLDER
            if error.is_open:
                self._give_up(folder, f"the store cannot be read ({error})")
            elif not wal.is_dir():
                self._give_up(folder, f"the store cannot be opened ({error})")
            elif self._step(
                f"set the store's log aside: nothing in it is listed, and the store does not open ({error})"
            ):
                self._set_aside(folder, wal)
                wal.mkdir()
                try:
                    self.repair_contents()
                except _Unusable as other:
                    what = "cannot be read" if other.is_open else "does not open"
                    self._give_up(folder, f"the store {what} without its log either ({other})")

    def _list_damage(self, folder: Path) -> str:
        try:
            with closing(sqlite3.connect(folder / LIST_FILE)) as connection:
                (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                (documents,) = connection.execute("SELECT COUNT(*) FROM documents").fetchone()
        except sqlite3.DatabaseError as error:
            return str(error)
        if said != "ok":
            return str(said)
        return (
            f"it lists none of {self.manifest.documents:,} documents"
            if self.manifest.documents > documents == 0
            else ""
        )

    def repair_contents(self) -> None:
        """Remove what is not sound; raises _Unusable where the store does not open, or cannot be read."""
        with ExitStack() as opened:
            is_open = False
            try:
                contents = opened.enter_context(self.place.contents(self.manifest, self.lock, complete=False))
                is_open = True
                found = contents.audit(progress=self.progress)
            except ServerError:
                raise
            except UserError as error:
                raise _Unusable(error if is_open else error.__cause__ or error, is_open=is_open) from error
            lost = found.lost
            unlisted = found.unlisted
            if unlisted and self._step(f"delete {len(unlisted):,} passages of the store that are {found.unlisted_is}"):
                contents.store.delete(unlisted)
                contents.store.flush()
            if lost and self._step(
                f"remove {len(lost):,} of {contents.documents:,} documents, of which something is missing or changed; "
                "they must be indexed again"
            ):
                contents.remove(lost)
                self.report.lost = lost
            counts = (contents.documents, contents.passages)
            if (self.manifest.documents, self.manifest.passages) != counts and (
                self.report.lost
                or self._step(f"set the manifest's counts to {counts[0]:,} documents and {counts[1]:,} passages")
            ):
                self._save_manifest(*counts)

    def _give_up(self, folder: Path, reason: str) -> None:
        if not self._step(f"set list and store aside, so that every document must be indexed again: {reason}"):
            return
        for name in (LIST_FILE, f"{LIST_FILE}-journal", STORE_FOLDER):
            if (folder / name).exists():
                self._set_aside(folder, folder / name)
        self.report.lost_all = True
        self._save_manifest(0, 0)

    def _save_manifest(self, documents: int, passages: int) -> None:
        self.manifest.documents, self.manifest.passages = documents, passages
        if self.report.lost or self.report.lost_all:
            self.manifest.status = "indexing"  # until a whole corpus has gone through again
        self.place.save(self.manifest)

    def _step(self, what: str) -> bool:
        agreed = self.agree(what)
        (self.report.done if agreed else self.report.declined).append(what)
        return agreed

    def _set_aside(self, folder: Path, path: Path) -> None:
        aside = folder / ASIDE_FOLDER / now().replace(":", "")
        aside.mkdir(parents=True, exist_ok=True)
        path.rename(aside / path.name)
