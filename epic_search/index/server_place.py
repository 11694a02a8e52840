"""Indexes on a Qdrant server: each a collection NAME--GENERATION behind the alias NAME, its manifest in its metadata.

A new generation is made beside the old one and takes the alias in one step when it is whole: queries get answers
meanwhile, and never a mixture. A reader keeps to the generation it opened; when that is deleted it goes on with the
one that followed, if the same encoder made it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from epic_search.errors import UserError
from epic_search.index.folder import IndexInfo, check_name
from epic_search.index.lexical import Lexical
from epic_search.index.manifest import Manifest
from epic_search.index.prompts import encode_prompt, note_prompt
from epic_search.index.server_collections import GENERATION, Collections, as_metadata, is_generation, number_of
from epic_search.index.server_contents import FIELDS, ServerContents
from epic_search.index.server_taught import TAUGHT, TaughtCollection, taught_collections
from epic_search.index.store.collection import Layout, create_collection
from epic_search.index.store.connection import Connection, Server, ServerError
from epic_search.index.store.protocol import Schema
from epic_search.index.store.server import ServerStore
from epic_search.index.taught import Taught, points_of

if TYPE_CHECKING:
    from epic_search.encoder import Encoder, Prompt
    from epic_search.index.lock import Lock
    from epic_search.index.place import IndexContents


class ServerPlace:
    """A `Place` on a server."""

    def __init__(
        self,
        name: str,
        collections: Collections,
        *,
        current: str | None,
        collection: str | None,
        layout: Layout | None = None,
        hidden: bool = False,
        follow: bool = False,
    ) -> None:
        """`current`: the collection behind the alias; `collection`: the one to use, None for one not made yet.

        With `hidden`, the name leads nowhere until the index is complete. With `follow`, what is opened goes on with
        the next generation once its own is deleted.
        """
        self.name = name
        self._layout = layout or Layout()
        self._hidden = hidden
        self._follow = follow
        self._collections = collections
        self._connection = collections.connection
        self._current = current
        self._collection = collection

    def begin(self, fingerprint: str) -> None:
        """Turn to a generation that is not the alias's: an unfinished one of this encoder, else one not made yet."""
        self.begin_anew()
        for collection in self._collections.generations(self.name):
            manifest = self._collections.manifest(collection)
            if collection != self._current and manifest is not None and manifest.fingerprint == fingerprint:
                self._collection = collection

    def begin_anew(self) -> None:
        """Turn to a generation that is not made yet."""
        self._collection = None

    @property
    def where(self) -> str:
        """See Place."""
        return f"collection {self._collection} at {self._connection.server}"

    def sizes(self) -> dict[str, int]:
        """See Place. A server does not say."""
        return {}

    def manifest(self) -> Manifest | None:
        """See Place."""
        return None if self._collection is None else self._collections.manifest(self._collection)

    def predecessor(self) -> Manifest | None:
        """See Place."""
        if self._current is None or self._collection == self._current:
            return None
        return self._collections.manifest(self._current)

    @contextmanager
    def lock(self, *, wait_seconds: float = 0.0) -> "Iterator[Lock | None]":
        """See Place. Points have the ids that their content gives them, so two runs at once do no harm."""
        yield None

    def save(self, manifest: Manifest) -> None:
        """See Place. Older and abandoned generations are deleted once a new one has the alias.

        Raises UserError when another encoder's run has made the collection meanwhile.
        """
        if self._collection is None:
            self._collection = self._create(manifest)
        else:
            self._collections.save(self._collection, manifest)
        is_complete = manifest.status == "complete"
        # While there is no other, queries lose nothing by seeing an index that is being made.
        if self._current != self._collection and (is_complete or (self._current is None and not self._hidden)):
            self._collections.swap(self.name, self._collection)
            self._current = self._collection
            if is_complete:
                self._collections.delete(self.name, keep=self._collection)

    def _create(self, manifest: Manifest) -> str:
        numbers = [number_of(one) for one in self._collections.generations(self.name)]
        collection = f"{self.name}--{max(numbers, default=0) + 1}"
        metadata = as_metadata(manifest)
        create_collection(
            self._connection, collection, schema=manifest.store_schema(), layout=self._layout, metadata=metadata
        )
        made = self._collections.manifest(collection)
        if made is None:
            raise UserError(
                f"the Qdrant server at {self._connection.server} keeps no metadata with collection '{collection}'; "
                "it must be Qdrant 1.17 or newer"
            )
        if made.fingerprint != manifest.fingerprint:
            raise UserError(
                f"another run has just made index '{self.name}' at {self._connection.server} with another encoder; "
                "use that one, or index under another name"
            )
        return collection

    def prompt(self, manifest: Manifest, *, encoder: "Encoder") -> "Prompt":
        """See Place. Its demonstrations are encoded anew."""
        return encode_prompt(manifest, encoder=encoder)

    def keep_prompt(self, manifest: Manifest, prompt: "Prompt", *, encoder: "Encoder") -> None:
        """See Place."""
        note_prompt(manifest, prompt)

    def save_ways(self, manifest: Manifest) -> None:
        """See Place."""
        assert self._collection is not None, self.name
        self._collections.save_ways(self._collection, manifest)

    def taught_place(self, manifest: Manifest, lock: "Lock | None") -> TaughtCollection:
        """See Place."""

        def confirm() -> None:
            self._successor(manifest)

        return TaughtCollection(self.name, manifest.fingerprint, self._collections, confirm=confirm)

    def taught_count(self, manifest: Manifest) -> int:
        """See Place."""
        return self.taught_place(manifest, None).count()

    def taught(
        self, manifest: Manifest, *, encoder: "Encoder", contents: "IndexContents", lock: "Lock | None"
    ) -> Taught:
        """See Place. What was taught while another encoder's generation had the name comes along."""
        place = self.taught_place(manifest, lock)
        taught = Taught(place, manifest, encoder=encoder, contents=contents)
        try:
            others = {*taught_collections(self.name, self._collections)} - {place.collection}
            if others and self._collection == self._current:
                place.confirm()  # else one of them would be the successor's
                for collection in others:
                    taught.adopt(points_of(ServerStore(self._connection, collection, schema=Schema({}))))
                    self._collections.drop(collection)
        except ServerError as error:
            # Who may only read leaves that to others; and one of them may have just done it.
            if error.failure.kind not in ("key", "missing"):
                taught.close()
                raise
        except BaseException:
            taught.close()
            raise
        return taught

    def settle(self, manifest: Manifest, *, encoder: "Encoder", contents: "IndexContents") -> None:
        """See Place. Who only searches may not be allowed to write, so this is done now."""
        self.taught(manifest, encoder=encoder, contents=contents, lock=None).close()

    def contents(self, manifest: Manifest, lock: "Lock | None", *, complete: bool = True) -> ServerContents:
        """See Place."""
        assert self._collection is not None, self.name

        moved = (lambda: self._successor(manifest)) if self._follow else None
        store = ServerStore(self._connection, self._collection, schema=manifest.store_schema(), moved=moved)
        if not self._follow:
            store.add_fields({**FIELDS, **store.schema.fields})
        return ServerContents(store, Lexical(manifest.lexical.average_length) if manifest.lexical is not None else None)

    def _successor(self, manifest: Manifest) -> str:
        """The collection that has the name now; raises UserError unless it is of the same encoder."""
        collection = self._collections.aliases().get(self.name)
        following = None if collection is None else self._collections.manifest(collection)
        if collection is None or following is None:
            raise UserError(f"index '{self.name}' at {self._connection.server} was deleted while it was open")
        if following.fingerprint != manifest.fingerprint:
            raise UserError(
                f"index '{self.name}' at {self._connection.server} was made anew by encoder '{following.encoder}' "
                f"while it was open for '{manifest.encoder}'; open it again"
            )
        return collection

    def delete(self) -> None:
        """Delete the index with all its generations."""
        self._collections.delete(self.name)

    def close(self) -> None:
        """See Place."""
        self._connection.close()


def existing_collection(name: str, server: Server) -> ServerPlace:
    """The place of an index that exists; raises UserError listing those that do."""
    check_name(name)
    with ExitStack() as opening:
        collections = Collections(opening.enter_context(Connection(server)))
        current = collections.aliases().get(name)
        if current is None or not is_generation(current, name):
            others = ", ".join(collections.names()) or "none yet"
            raise UserError(
                f"no index '{name}' on the Qdrant server at {server} (there: {others}); "
                f"make it with 'epic-search index FILE --name {name} --url {server}'"
            )
        opening.pop_all()
    return ServerPlace(name, collections, current=current, collection=current, follow=True)


def target_collection(
    name: str,
    server: Server,
    *,
    fingerprint: str,
    rebuild: bool = False,
    hidden: bool = False,
    layout: Layout | None = None,
) -> ServerPlace:
    """The place to index into; raises UserError when something else has the name.

    With `rebuild`, it is another generation than that of the alias: one that a run with this encoder began and did not
    finish, else a new one.
    """
    check_name(name)
    if GENERATION.fullmatch(name) or TAUGHT.fullmatch(name):
        raise UserError(f"{name!r} cannot name an index on a server: so are its collections named; take off the '--'")
    with ExitStack() as opening:
        collections = Collections(opening.enter_context(Connection(server)))
        current = collections.aliases().get(name)
        if (current is not None and not is_generation(current, name)) or name in collections.all():
            raise UserError(
                f"the Qdrant server at {server} has a collection '{name}' that is not ours; choose another --name"
            )
        place = ServerPlace(name, collections, current=current, collection=current, layout=layout, hidden=hidden)
        if current is None or rebuild:
            place.begin(fingerprint)
        opening.pop_all()
    return place


def list_collections(server: Server) -> list[IndexInfo]:
    """All indexes of a server, by name."""
    with Connection(server) as connection:
        collections = Collections(connection)
        aliases = collections.aliases()
        found = [_info(name, aliases[name], collections) for name in collections.names()]
        return [info for info in found if info is not None]


def delete_collections(name: str, server: Server) -> None:
    """Delete an index with all its generations; raises UserError when there is none."""
    place = existing_collection(name, server)
    try:
        place.delete()
    finally:
        place.close()


def _info(name: str, collection: str, collections: Collections) -> IndexInfo | None:
    try:
        manifest = collections.manifest(collection)
    except UserError as error:
        return IndexInfo(name, None, "unreadable", 0, 0, "", None, 0, None, "", problem=str(error))
    if manifest is None:
        return None
    return IndexInfo(
        name=name,
        path=None,
        status=manifest.status,
        documents=manifest.documents,
        passages=manifest.passages,
        encoder=manifest.encoder,
        task=manifest.task,
        demonstrations=len(manifest.demonstrations),
        size=None,
        updated=manifest.updated,
        cut_to=manifest.cut_to,
    )
