"""Taught pairs in a folder: a small store of its own beside the index's."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from epic_search.errors import UserError
from epic_search.index.disk import require_space
from epic_search.index.manifest import sync_folder
from epic_search.index.store.edge import EdgeStore, StoreDamaged
from epic_search.index.store.protocol import Schema

if TYPE_CHECKING:
    from epic_search.index.lock import Lock
    from epic_search.index.manifest import Manifest

TAUGHT_FOLDER = "taught"
UNFINISHED_FOLDER = "taught.new"


class TaughtFolder:
    """A `TaughtPlace` in the folder of an index that is locked."""

    def __init__(self, folder: Path, manifest: "Manifest", lock: "Lock") -> None:
        self.where = f"the folder {folder / TAUGHT_FOLDER}"
        self._folder = folder
        self._manifest = manifest
        self._lock = lock

    def open(self, schema: Schema) -> EdgeStore | None:
        """See TaughtPlace."""
        path = self._folder / TAUGHT_FOLDER
        if not path.is_dir():
            return None
        name, remedy = self._manifest.name, f"remove {self.where} and teach again"
        try:
            store = EdgeStore(path, schema=schema, create=False, keep_open=[self._lock.fd])
        except StoreDamaged as error:
            raise UserError(f"what index '{name}' was taught is damaged ({error}); {remedy}") from error
        if (held := store.count()) < self._manifest.taught:
            store.close()
            raise UserError(
                f"what index '{name}' was taught is damaged (its store holds {held:,} of "
                f"{self._manifest.taught:,} pairs); {remedy}"
            )
        return store

    def state(self) -> None:
        """See TaughtPlace. The lock keeps others out."""

    def create(self, schema: Schema) -> EdgeStore:
        """See TaughtPlace. Until it is whole it has another name: what a killed process leaves is made again."""
        unfinished = self._folder / UNFINISHED_FOLDER
        shutil.rmtree(unfinished, ignore_errors=True)
        require_space(self._folder, 0)
        EdgeStore(unfinished, schema=schema, create=True, keep_open=[self._lock.fd]).close()
        unfinished.rename(self._folder / TAUGHT_FOLDER)
        sync_folder(self._folder)
        store = self.open(schema)
        assert store is not None, self._folder
        return store

    def require_space(self) -> None:
        """See TaughtPlace."""
        require_space(self._folder, 0)

    def note(self, manifest: "Manifest") -> None:
        """See TaughtPlace."""
        manifest.save(self._folder)

    def confirm(self) -> None:
        """See TaughtPlace. The lock keeps others out."""
