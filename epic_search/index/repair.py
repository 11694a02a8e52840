"""Puts right what can be put right in a damaged index, and says what was lost.

Step by step, and only what was agreed to: what is about to be done is said in sentences first. Files are never deleted
but set aside, in the folder `aside` of the index.
"""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from epic_search.errors import UserError
from epic_search.index.contents import LIST_FILE, STORE_FOLDER, Contents
from epic_search.index.folder import ASIDE_FOLDER, existing_index
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest, now
from epic_search.index.verify import LOCK_WAIT_SECONDS, Progress, audit

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


def repair_index(name: str, *, agree: Agree, home: Path | None = None, progress: Progress | None = None) -> Repair:
    """Repair an index; raises UserError when there is none, when it is in use, and when its manifest is damaged."""
    folder = existing_index(name, home)
    with Lock(folder, wait_seconds=LOCK_WAIT_SECONDS) as lock:
        manifest = Manifest.load(folder)
        return _Repairer(folder, manifest, lock, agree, progress).repair()


class _Unopened(Exception):
    """The store does not open."""


class _Repairer:
    def __init__(self, folder: Path, manifest: Manifest, lock: Lock, agree: Agree, progress: Progress | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.lock = lock
        self.agree = agree
        self.progress = progress
        self.report = Repair(folder.name, source=manifest.source)

    def repair(self) -> Repair:
        """First the list, then whether the store opens, then what is in it."""
        if reason := self._list_damage():
            self._give_up(f"the list of documents cannot be used ({reason})")
            return self.report
        try:
            self._repair_contents()
        except _Unopened as error:
            # What was flushed is in the store's segments, and nothing is listed before it is flushed: the log holds
            # nothing that is listed. One request in it that makes the engine fail makes it fail at every opening.
            wal = self.folder / STORE_FOLDER / WAL_FOLDER
            if not wal.is_dir():
                self._give_up(f"the store cannot be opened ({error})")
            elif self._step(
                f"set the store's log aside: nothing in it is listed, and the store does not open ({error})"
            ):
                self._set_aside(wal)
                wal.mkdir()
                try:
                    self._repair_contents()
                except _Unopened as other:
                    self._give_up(f"the store does not open without its log either ({other})")
        return self.report

    def _list_damage(self) -> str:
        try:
            with closing(sqlite3.connect(self.folder / LIST_FILE)) as connection:
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

    def _repair_contents(self) -> None:
        """Repair what is in list and store; raises _Unopened where the store does not open."""
        with ExitStack() as opened:
            try:
                contents = opened.enter_context(Contents(self.folder, self.manifest, lock=self.lock, complete=False))
            except UserError as error:
                raise _Unopened(error.__cause__ or error) from error
            try:
                found = audit(contents, progress=self.progress)
            except UserError as error:
                opened.close()
                self._give_up(f"the store cannot be read ({error})")
                return
            lost = found.lost
            unlisted = found.unlisted
            if unlisted and self._step(f"delete {len(unlisted):,} passages of the store that are not listed"):
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

    def _give_up(self, reason: str) -> None:
        if not self._step(f"set list and store aside, so that every document must be indexed again: {reason}"):
            return
        for name in (LIST_FILE, f"{LIST_FILE}-journal", STORE_FOLDER):
            if (self.folder / name).exists():
                self._set_aside(self.folder / name)
        self.report.lost_all = True
        self._save_manifest(0, 0)

    def _save_manifest(self, documents: int, passages: int) -> None:
        self.manifest.documents, self.manifest.passages = documents, passages
        if self.report.lost or self.report.lost_all:
            self.manifest.status = "indexing"  # until a whole corpus has gone through again
        self.manifest.save(self.folder)

    def _step(self, what: str) -> bool:
        agreed = self.agree(what)
        (self.report.done if agreed else self.report.declined).append(what)
        return agreed

    def _set_aside(self, path: Path) -> None:
        aside = self.folder / ASIDE_FOLDER / now().replace(":", "")
        aside.mkdir(parents=True, exist_ok=True)
        path.rename(aside / path.name)
