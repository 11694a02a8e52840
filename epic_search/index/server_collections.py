"""The collections and aliases of a Qdrant server as indexes: what carries a manifest, and which has a name.

How what is taught is used (see ways.py) has a key of its own in the metadata: it may be set while a run that holds the
manifest goes on.
"""

import re
from typing import Any

from epic_search import __version__
from epic_search.index.manifest import Manifest, now
from epic_search.index.server_taught import taught_collections
from epic_search.index.store.connection import Connection, ServerError

METADATA_KEY = "epic_search"
WAYS_KEY = "epic_search_ways"
WAYS = {"demos", "demos_k", "boost"}  # of a manifest
GENERATION = re.compile(r"(?P<name>.+)--(?P<number>[1-9][0-9]{0,8})")


class Collections:
    """The indexes of a server, as its collections and aliases tell."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def names(self) -> list[str]:
        """The names of the indexes."""
        return sorted(alias for alias, collection in self.aliases().items() if is_generation(collection, alias))

    def aliases(self) -> dict[str, str]:
        """The collection behind each alias."""
        answer = self.connection(lambda client: client.get_aliases())
        return {alias.alias_name: alias.collection_name for alias in answer.aliases}

    def all(self) -> list[str]:
        """The names of all collections."""
        return [one.name for one in self.connection(lambda client: client.get_collections()).collections]

    def generations(self, name: str) -> list[str]:
        """The collections NAME--GENERATION, oldest first."""
        return sorted((one for one in self.all() if is_generation(one, name)), key=number_of)

    def manifest(self, collection: str) -> Manifest | None:
        """The manifest that a collection carries; None where it carries none, or is gone."""
        metadata = self.metadata(collection)
        content = metadata.get(METADATA_KEY)
        if isinstance(content, dict):
            content = content | metadata.get(WAYS_KEY, {})
        where = f"the metadata of collection '{collection}' at {self.connection.server}"
        return None if content is None else Manifest.parse(content, where)

    def drop(self, collection: str) -> None:
        """Delete a collection."""
        self.connection(lambda client: client.delete_collection(collection))

    def is_ours(self, collection: str) -> bool:
        """Whether a collection carries a manifest, readable or not."""
        return METADATA_KEY in self.metadata(collection)

    def metadata(self, collection: str) -> dict[str, Any]:
        """What a collection carries beside its points; nothing where it is gone."""
        try:
            info = self.connection(lambda client: client.get_collection(collection))
        except ServerError as error:
            if error.failure.kind == "missing":
                return {}
            raise
        return info.config.metadata or {}

    def save(self, collection: str, manifest: Manifest) -> None:
        """Put a manifest into a collection's metadata, except what `save_ways` does."""
        manifest.updated, manifest.epic_search = now(), __version__
        metadata = {METADATA_KEY: as_metadata(manifest)[METADATA_KEY]}
        self.connection(lambda client: client.update_collection(collection, metadata=metadata))

    def save_ways(self, collection: str, manifest: Manifest) -> None:
        """Put how an index uses what it was taught into a collection's metadata."""
        metadata = {WAYS_KEY: as_metadata(manifest)[WAYS_KEY]}
        self.connection(lambda client: client.update_collection(collection, metadata=metadata))

    def swap(self, name: str, collection: str) -> None:
        """Let the alias point to a collection, in one step."""
        from qdrant_client import models

        changes: list[Any] = []
        if name in self.aliases():
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)))
        alias = models.CreateAlias(collection_name=collection, alias_name=name)
        changes.append(models.CreateAliasOperation(create_alias=alias))
        self.connection(lambda client: client.update_collection_aliases(changes))

    def delete(self, name: str, *, keep: str | None = None) -> None:
        """Delete the generations of an index except one, or all with what it was taught; what is not ours stays."""
        for collection in self.generations(name):
            if collection != keep and self.is_ours(collection):
                self.drop(collection)
        if keep is None:
            for collection in taught_collections(name, self):
                self.drop(collection)


def as_metadata(manifest: Manifest) -> dict[str, Any]:
    """The metadata of a collection; null would remove a key, so what is None is left out."""
    content = manifest.model_dump(mode="json", exclude_none=True, exclude=WAYS)
    return {METADATA_KEY: content, WAYS_KEY: manifest.model_dump(mode="json", exclude_none=True, include=WAYS)}


def is_generation(collection: str, name: str) -> bool:
    """Whether a collection's name is NAME--GENERATION of this index."""
    match = GENERATION.fullmatch(collection)
    return match is not None and match["name"] == name


def number_of(collection: str) -> int:
    """The number of a generation."""
    match = GENERATION.fullmatch(collection)
    assert match is not None, collection
    return int(match["number"])
