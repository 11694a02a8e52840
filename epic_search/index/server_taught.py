"""Taught pairs on a server: a collection of their own beside the index's.

It belongs to the index's name and encoder, NAME--taught-FINGERPRINT, and not to a generation: one that is made anew by
the same encoder has the same pairs, whoever teaches meanwhile. Pairs have the ids that their texts give them, so any
number of machines may teach at once.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from epic_search.index.store.collection import Layout, create_collection
from epic_search.index.store.connection import ServerError
from epic_search.index.store.server import ServerStore

if TYPE_CHECKING:
    from epic_search.index.manifest import Manifest
    from epic_search.index.server_collections import Collections
    from epic_search.index.store.protocol import Schema

DIGITS = 16  # of the fingerprint
TAUGHT = re.compile(rf"(?P<name>.+)--taught-[0-9a-f]{{{DIGITS}}}")
METADATA_KEY = "epic_search_taught"


class TaughtCollection:
    """A `TaughtPlace` on a server."""

    def __init__(self, name: str, fingerprint: str, collections: "Collections", *, confirm: Callable[[], None]) -> None:
        """Of the index `name` by the encoder with this fingerprint. `confirm`: see TaughtPlace."""
        self.collection = taught_collection(name, fingerprint)
        self.where = f"the collection '{self.collection}' at {collections.connection.server}"
        self.confirm = confirm
        self._name = name
        self._collections = collections

    def open(self, schema: "Schema") -> ServerStore | None:
        """See TaughtPlace."""
        there = self._collections.connection(lambda client: client.collection_exists(self.collection))
        return self._store(schema) if there else None

    def state(self) -> object:
        """See TaughtPlace. A run keeps what it has done so far in the metadata of the index."""
        try:
            info = self._collections.connection(lambda client: client.get_collection(self._name))
        except ServerError as error:
            if error.failure.kind != "missing":
                raise
            return None  # it was deleted: who looks for its documents says so
        return info.points_count, info.config.metadata

    def create(self, schema: "Schema") -> ServerStore:
        """See TaughtPlace. It is kept in as many copies as the index."""
        connection = self._collections.connection
        index = connection(lambda client: client.get_collection(self._name)).config.params
        layout = Layout(1, index.replication_factor, index.write_consistency_factor)
        metadata = {METADATA_KEY: {"index": self._name}}
        create_collection(connection, self.collection, schema=schema, layout=layout, metadata=metadata)
        return self._store(schema)

    def _store(self, schema: "Schema") -> ServerStore:
        def gone() -> str:
            self.confirm()
            return self.collection

        return ServerStore(self._collections.connection, self.collection, schema=schema, moved=gone)

    def require_space(self) -> None:
        """See TaughtPlace. A server sees to its own disk."""

    def note(self, manifest: "Manifest") -> None:
        """See TaughtPlace. The collection itself tells how many there are."""

    def count(self) -> int:
        """How many pairs are kept."""
        try:
            return self._collections.connection(lambda client: client.count(self.collection, exact=True)).count
        except ServerError as error:
            if error.failure.kind == "missing":
                return 0
            raise


def taught_collection(name: str, fingerprint: str) -> str:
    """The collection with what an index was taught under an encoder."""
    return f"{name}--taught-{fingerprint[:DIGITS]}"


def taught_collections(name: str, collections: "Collections") -> list[str]:
    """The collections with what an index was taught, under whatever encoder."""
    found = [one for one in collections.all() if (match := TAUGHT.fullmatch(one)) and match["name"] == name]
    return [one for one in found if METADATA_KEY in collections.metadata(one)]
