"""Indexes as tools of a language model: an MCP server over stdin and stdout (modelcontextprotocol.io).

Such a server may run for days beside an editor, so it opens an index for each call only; in between, others can write
to it. An index that `epic-search serve` has open is asked for there.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from epic_search import __version__
from epic_search.errors import UserError
from epic_search.index import Searcher
from epic_search.index.folder import Home
from epic_search.index.manifest import Manifest
from epic_search.index.place import manifest_of
from epic_search.serving import answers
from epic_search.serving.client import Client, server_of
from epic_search.serving.problems import ApiError
from epic_search.serving.schemas import DocumentAnswer, SearchAnswer, SearchRequest

if TYPE_CHECKING:
    from epic_search.encoder import Encoder

Answer = TypeVar("Answer")

MOST = 100  # documents of one answer: more than a model reads


class Tools:
    """The indexes that a client may ask. `load` gives the encoder that a manifest names, which is then kept."""

    def __init__(self, names: Sequence[str], *, home: Home, load: Callable[[Manifest], "Encoder"]) -> None:
        self.names = list(names)
        self._home = home
        self._load = load
        self._encoders: dict[str, Encoder] = {}
        self._one_at_a_time = threading.Lock()

    def search(self, asked: SearchRequest) -> SearchAnswer:
        """The server's answer where there is one, else our own; raises UserError for what the client can put right."""
        name = self._known(asked.index)
        server = self._server(name)
        if server is not None:
            return SearchAnswer.model_validate(server.search(asked.model_dump(exclude_none=True) | {"index": name}))
        return answers.search(self, asked)

    def get(self, index: str | None, document_id: str) -> DocumentAnswer:
        """A document, from the server where there is one; raises UserError for one that is not there.

        An id may be in several indexes: where there are several, one must be named.
        """
        if index is None and len(self.names) > 1:
            raise UserError(f"which index has '{document_id}'? give 'index', one of {', '.join(self.names)}")
        name = self._known(index)
        server = self._server(name)
        if server is not None:
            return DocumentAnswer.model_validate(server.document(name, document_id))
        return answers.document(self, name, document_id)

    @contextmanager
    def use(self, name: str | None) -> Iterator[Searcher]:
        """An open index, for as long as one call takes."""
        known = self._known(name)
        with self._one_at_a_time:
            manifest = manifest_of(known, self._home)
            if manifest.fingerprint not in self._encoders:
                self._encoders[manifest.fingerprint] = self._load(manifest)
            with Searcher.open(known, home=self._home, encoder=self._encoders[manifest.fingerprint]) as searcher:
                yield searcher

    def _server(self, name: str) -> Client | None:
        return server_of(self._home / name) if isinstance(self._home, Path) else None

    def _known(self, name: str | None) -> str:
        if name is not None and name not in self.names:
            raise UserError(f"there is no index '{name}'; there are {', '.join(self.names)}")
        return self.names[0] if name is None else name


def server(tools: Tools) -> MCPServer:
    """The MCP server; its `run("stdio")` answers until stdin closes."""
    which = f"One of: {', '.join(tools.names)}."
    mcp = MCPServer(
        "epic-search",
        version=__version__,
        instructions="Search the user's own documents by meaning and by words, and read what was found.",
        log_level="WARNING",
    )

    @mcp.tool()
    async def search(
        query: Annotated[str, Field(description="What to look for, in words or as a question.", max_length=10_000)],
        index: Annotated[str | None, Field(description=f"{which} Default: the first.")] = None,
        k: Annotated[int, Field(description="How many documents.", ge=1, le=MOST)] = 10,
        filter: Annotated[
            str | None, Field(description="Only documents whose fields pass, such as: year>=2020 and lang in (en, de)")
        ] = None,
    ) -> SearchAnswer:
        """Find the documents that answer a query, best first, each with its best passage."""
        return await _told(lambda: tools.search(SearchRequest(query=query, index=index, k=k, filter=filter)))

    @mcp.tool()
    async def get(
        id: Annotated[str, Field(description="The id of a document, as search returns it.")],
        index: Annotated[
            str | None, Field(description=f"{which} Where there are several: the one whose search returned the id.")
        ] = None,
    ) -> DocumentAnswer:
        """Read a document: its title, all its passages in order and what else is known of it."""
        return await _told(lambda: tools.get(index, id))

    return mcp


async def _told(work: Callable[[], Answer]) -> Answer:
    """The answer, from a thread; a user's mistake is told to the model, which may ask again."""
    try:
        return await anyio.to_thread.run_sync(work)
    except (UserError, ApiError) as error:
        raise ToolError(str(error)) from error
