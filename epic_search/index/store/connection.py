"""A Qdrant server: where it is, and requests to it that survive a bad minute.

Every request of the index may be repeated: points have the ids that their content gives them. So what a server in
trouble answers (408, 429, 5xx), what times out and what breaks off is tried again, later and later, a bounded number
of times and for a bounded time. What is final, or does not end, is one sentence with the server's address.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from epic_search.errors import UserError
from epic_search.index.store.failure import Failure, failure_of

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")

DEFAULT_PORT = 6333
TIMEOUT_SECONDS = 30
FIRST_TRIES = 3  # before a server has ever answered: it may not be there at all
TRIES = 8
PATIENCE_SECONDS = 60.0  # all tries of one request
FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a Qdrant server. The key is not part of any text made from this.

    `grpc`: requests go by gRPC, to the port after the URL's, as 6334 is after 6333. `timeout`: seconds a request may
    take. Raises UserError for a URL that is none.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    grpc: bool = False
    timeout: int = TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
            _ = parts.port
        except ValueError:
            sound = False
        else:
            if parts.username is not None or parts.password is not None:
                raise UserError(
                    f"the URL of {parts.hostname} has a user or key in it, which ends up in logs; "
                    "give the key with --api-key or EPIC_SEARCH_QDRANT_API_KEY"
                )
        if not sound:
            raise UserError(f"{self.url!r} is not the URL of a Qdrant server; give one such as http://localhost:6333")

    def __str__(self) -> str:
        return self.url

    @property
    def key_is_exposed(self) -> bool:
        """Whether the key travels unencrypted to another machine."""
        parts = urlsplit(self.url)
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        return self.api_key is not None and parts.scheme == "http" and not here


class ServerError(UserError):
    """A request that a server did not fulfil; `failure` says why."""

    def __init__(self, sentence: str, failure: Failure) -> None:
        super().__init__(sentence)
        self.failure = failure


class Connection:
    """Requests to one server. Close it, or use it in a `with` statement."""

    def __init__(self, server: Server, *, client: "QdrantClient | None" = None) -> None:
        """Connect with the first request; `client` replaces the one that would be made."""
        self.server = server
        self._client = client if client is not None else _client(server)
        self._has_answered = False

    def __call__(self, request: "Callable[[QdrantClient], T]") -> T:
        """The answer to a request, which is tried again where that can help.

        Raises ServerError, a UserError, when the server refuses it or goes on failing.
        """
        start, tries = time.monotonic(), 0
        while True:
            try:
                answer = request(self._client)
            except Exception as error:
                failure = failure_of(error, self.server.timeout)
                if failure is None:
                    raise
                self._has_answered = self._has_answered or failure.answered
            else:
                self._has_answered = True
                return answer
            tries += 1
            wait = failure.wait if failure.wait is not None else _backoff(tries)
            elapsed = time.monotonic() - start
            enough = tries >= (TRIES if self._has_answered else FIRST_TRIES) or elapsed + wait > PATIENCE_SECONDS
            if not failure.passing or enough:
                effort = f" ({tries} tries in {elapsed:.0f} s)" if tries > 1 else ""
                raise ServerError(
                    f"the Qdrant server at {self.server} {failure.what}{effort}; {self._advice(failure)}", failure
                )
            time.sleep(wait)

    def _advice(self, failure: Failure) -> str:
        if failure.kind == "key" and self.server.api_key is None:
            return "give its key with --api-key or EPIC_SEARCH_QDRANT_API_KEY"
        return failure.advice

    def close(self) -> None:
        """Let go of the sockets."""
        self._client.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _client(server: Server) -> "QdrantClient":
    import warnings

    from qdrant_client import QdrantClient

    parts = urlsplit(server.url)
    port = parts.port or DEFAULT_PORT
    options: dict[str, Any] = {"grpc_port": port + 1, "prefer_grpc": server.grpc}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a key without TLS, which the command line says in its own words
        return QdrantClient(
            url=server.url,
            port=port,
            api_key=server.api_key,
            timeout=server.timeout,
            check_compatibility=False,
            **options,
        )


def _backoff(tries: int) -> float:
    """Seconds to wait after so many tries: doubled each time, and never the same for two clients."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (tries - 1))
