"""Where what is taught is kept: beside an index in a folder, or beside one on a server. One face for both."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from epic_search.index.manifest import Manifest
    from epic_search.index.store.protocol import Schema, VectorStore


class TaughtPlace(Protocol):
    """Where an index keeps what it is taught.

    `where`: what a user can remove to begin anew, in words.
    """

    where: str

    def open(self, schema: "Schema") -> "VectorStore | None":
        """The store; None while nothing is taught. Raises UserError when it is damaged."""

    def state(self) -> object:
        """Something else whenever others have changed the index's documents; asks for little."""

    def create(self, schema: "Schema") -> "VectorStore":
        """An empty store, or the one that another process has just made."""

    def require_space(self) -> None:
        """Raise UserError when there is no room for more."""

    def note(self, manifest: "Manifest") -> None:
        """Keep the number of pairs that the manifest has now."""

    def confirm(self) -> None:
        """Raise UserError unless what was written just before is still the index's: it was acknowledged to nobody."""
