"""Where an index is kept: a folder of this machine, or collections of a Qdrant server. One face for both.

What reads and writes indexes asks for a `Place` and does not care which it got.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from epic_search.errors import UserError
from epic_search.index.contents import LIST_FILE, STORE_FOLDER, Contents
from epic_search.index.disk import disk_usage
from epic_search.index.folder import ASIDE_FOLDER, Home, existing_index, make_folder, target_folder
from epic_search.index.lock import Lock
from epic_search.index.manifest import MANIFEST_FILE, Manifest
from epic_search.index.prompts import load_prompt, store_prompt
from epic_search.index.store.connection import Server

if TYPE_CHECKING:
    from epic_search.encoder import Encoder, Prompt
    from epic_search.index.audit import Audit, Progress
    from epic_search.index.lexical import Lexical
    from epic_search.index.passages import CutDocument
    from epic_search.index.store.collection import Layout
    from epic_search.index.store.protocol import VectorStore
    from epic_search.index.taught import Taught
    from epic_search.index.taught_place import TaughtPlace


class IndexContents(Protocol):
    """An open index: its documents and their passages' points. `lexical`: None where those have no BM25 terms."""

    lexical: "Lexical | None"

    @property
    def documents(self) -> int:
        """How many documents there are."""

    @property
    def passages(self) -> int:
        """How many passages there are."""

    @property
    def store(self) -> "VectorStore":
        """The points."""

    def first_sight(self, document_id: str) -> bool:
        """Note that this run saw a document; False if it did before."""

    def versions(self, document_ids: Sequence[str]) -> dict[str, bytes]:
        """The stored version of each document that is stored."""

    def points_of(self, document_id: str) -> list[str]:
        """The ids of a stored document's points, in the order of its passages; none for a document not stored."""

    def ids_near(self, document_id: str) -> list[str]:
        """Ids of stored documents that are written like this one, a few, where that can be looked up."""

    def put(self, chunk: "Sequence[CutDocument]", vectors_PE: np.ndarray) -> int:
        """Store documents in place of their older versions, safely on return. Returns how many had one."""

    def remove_unseen(self) -> int:
        """Remove the documents that this run did not see; returns how many those were."""

    def remove(self, document_ids: Sequence[str]) -> int:
        """Remove these documents; returns how many of them there were."""

    def audit(self, *, sample: int = 0, progress: "Progress | None" = None) -> "Audit":
        """Read everything and say what is not as it was stored; `sample` sound points are kept."""

    def optimize(self) -> None:
        """Make the store fast to search."""

    def __enter__(self) -> Self:
        """It is closed at the end of the `with` statement."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""


class Place(Protocol):
    """One index's place. Every method raises UserError for what a user can put right."""

    name: str

    @property
    def where(self) -> str:
        """The folder, or the collection and its server."""

    def sizes(self) -> dict[str, int]:
        """Bytes on the disk: `size` of all of it, and of its parts; nothing where that cannot be told."""

    def manifest(self) -> Manifest | None:
        """What is here; None where there is no index yet."""

    def predecessor(self) -> Manifest | None:
        """The index that the one to be made here will replace, if it will."""

    def lock(self, *, wait_seconds: float = 0.0) -> AbstractContextManager[Lock | None]:
        """Keep other processes out, where they can do harm."""

    def save(self, manifest: Manifest) -> None:
        """Keep the manifest, durably; make the index where there is none.

        A complete one is from now on what is found under its name.
        """

    def prompt(self, manifest: Manifest, *, encoder: "Encoder") -> "Prompt":
        """The index's prompt."""

    def keep_prompt(self, manifest: Manifest, prompt: "Prompt", *, encoder: "Encoder") -> None:
        """Make this the index's prompt: its texts go into `manifest`, which the caller saves."""

    def contents(self, manifest: Manifest, lock: Lock | None, *, complete: bool = True) -> IndexContents:
        """Open what is here; with `complete=False` even where a part of it is missing."""

    def save_ways(self, manifest: Manifest) -> None:
        """Keep how the index uses what it was taught, durably."""

    def taught_place(self, manifest: Manifest, lock: Lock | None) -> "TaughtPlace":
        """Where what it is taught is kept."""

    def taught_count(self, manifest: Manifest) -> int:
        """How many pairs are kept there."""

    def taught(self, manifest: Manifest, *, encoder: "Encoder", contents: IndexContents, lock: Lock | None) -> "Taught":
        """Open what a user taught."""

    def settle(self, manifest: Manifest, *, encoder: "Encoder", contents: IndexContents) -> None:
        """Bring what was taught in step with an index that has just become complete, where opening it will not do."""

    def close(self) -> None:
        """Let go of it."""


def place_of(name: str, home: Home | None) -> Place:
    """The place of an index that exists; raises UserError listing those that do."""
    if isinstance(home, Server):
        from epic_search.index.server_place import existing_collection

        return existing_collection(name, home)
    return Folder(existing_index(name, home))


def target_place(
    name: str, home: Home | None, *, encoder: "Encoder", rebuild: bool = False, layout: "Layout | None" = None
) -> Place:
    """The place to index into; raises UserError when something else is there already.

    On a server, `rebuild` keeps the index of that name while a new one is made beside it, and `layout` says how a new
    one is kept. A folder has neither.
    """
    if isinstance(home, Server):
        from epic_search.index.server_place import target_collection

        return target_collection(name, home, fingerprint=encoder.fingerprint, rebuild=rebuild, layout=layout)
    if rebuild or layout is not None:
        raise UserError("--rebuild and how shards are kept are for a Qdrant server; name one with --url")
    return Folder(target_folder(name, home))


def stored_manifest(place: Place) -> Manifest:
    """The manifest of an index that was there; raises UserError when it was deleted meanwhile."""
    manifest = place.manifest()
    if manifest is None:
        raise UserError(f"index '{place.name}' has just been deleted")
    return manifest


def manifest_of(name: str, home: Home | None) -> Manifest:
    """The manifest of an index that exists; raises UserError listing those that do."""
    with closing(place_of(name, home)) as place:
        return stored_manifest(place)


class Folder:
    """A `Place` in a home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name

    @property
    def where(self) -> str:
        """See Place."""
        return str(self.folder.resolve())

    def sizes(self) -> dict[str, int]:
        """See Place."""
        list_file = self.folder / LIST_FILE
        return {
            "size": disk_usage(self.folder),
            "store_size": disk_usage(self.folder / STORE_FOLDER),
            "list_size": list_file.stat().st_size if list_file.is_file() else 0,
            "aside_size": disk_usage(self.folder / ASIDE_FOLDER),
        }

    def manifest(self) -> Manifest | None:
        """See Place."""
        return Manifest.load(self.folder) if (self.folder / MANIFEST_FILE).exists() else None

    def predecessor(self) -> Manifest | None:
        """See Place."""
        return None

    def lock(self, *, wait_seconds: float = 0.0) -> Lock:
        """See Place. Makes the folder, which holds the lock."""
        make_folder(self.folder)
        return Lock(self.folder, wait_seconds=wait_seconds)

    def save(self, manifest: Manifest) -> None:
        """See Place."""
        manifest.save(self.folder)

    def prompt(self, manifest: Manifest, *, encoder: "Encoder") -> "Prompt":
        """See Place."""
        return load_prompt(self.folder, manifest, encoder=encoder)

    def keep_prompt(self, manifest: Manifest, prompt: "Prompt", *, encoder: "Encoder") -> None:
        """See Place."""
        store_prompt(self.folder, manifest, prompt, encoder=encoder)

    def contents(self, manifest: Manifest, lock: Lock | None, *, complete: bool = True) -> IndexContents:
        """See Place."""
        assert lock is not None, self.folder
        return Contents(self.folder, manifest, lock=lock, complete=complete)

    def save_ways(self, manifest: Manifest) -> None:
        """See Place."""
        manifest.save(self.folder)

    def taught_place(self, manifest: Manifest, lock: Lock | None) -> "TaughtPlace":
        """See Place."""
        from epic_search.index.taught_folder import TaughtFolder

        assert lock is not None, self.folder
        return TaughtFolder(self.folder, manifest, lock)

    def taught_count(self, manifest: Manifest) -> int:
        """See Place."""
        return manifest.taught

    def taught(self, manifest: Manifest, *, encoder: "Encoder", contents: IndexContents, lock: Lock | None) -> "Taught":
        """See Place."""
        from epic_search.index.taught import Taught

        return Taught(self.taught_place(manifest, lock), manifest, encoder=encoder, contents=contents)

    def settle(self, manifest: Manifest, *, encoder: "Encoder", contents: IndexContents) -> None:
        """See Place. Who opens a folder writes to it, and opening brings pairs in step."""

    def close(self) -> None:
        """See Place."""
