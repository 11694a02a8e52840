"""The process that serves: its socket, its connections, and how it ends."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from epic_search.errors import UserError
from epic_search.serving.app import Service
from epic_search.serving.problems import ApiError
from epic_search.serving.security import is_loopback

HEAD_SECONDS = 5.0  # for the request line and the headers to come
HEAD_BYTES = 64 * 1024
ADDRESS_BYTES = 60_000
LINGER_SECONDS = 2.0  # for a client that is refused to read why
QUIET_SECONDS = 0.3  # without a request, after which connections are closed at the end
DRAIN_SECONDS = 30.0
CONNECTIONS = 1000


class Connection(HttpToolsProtocol):
    """uvicorn's, for which the head of a request has limits in time and size."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; it has to say something soon."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._await_head()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        super().on_url(url)
        if len(self.url) > ADDRESS_BYTES:
            self._refuse(431, f"the address is longer than {ADDRESS_BYTES:,} bytes", "ask for less at once")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Some bytes."""
        if self._is_refused:
            return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > HEAD_BYTES:
            self._refuse(431, f"the head of the request is larger than {HEAD_BYTES:,} bytes", "send shorter headers")

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP."""
        self._refuse(400, "this is not a valid HTTP request", "send HTTP/1.1")

    def _await_head(self) -> None:
        self._head_came()
        self._head_bytes = 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_came(self) -> None:
        self._head_bytes = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._refuse(408, f"the head of the request did not come within {HEAD_SECONDS:g} seconds", "send it faster")

    def _refuse(self, status: int, message: str, hint: str) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        answer = ApiError(status, message, hint).response()
        head = [f"HTTP/1.1 {status} Refused".encode(), *(b": ".join(pair) for pair in answer.raw_headers)]
        self.transport.write(b"\r\n".join([*head, b"connection: close", b"", bytes(answer.body)]))
        # To close now, with something unread, would reset the connection, and the answer might never be read.
        self._is_refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn's, which ends without dropping a request: see `shutdown`. `ready` is called once clients can connect."""

    def __init__(self, service: Service, *, ready: Callable[[], None]) -> None:
        self.service = service
        self._ready = ready
        super().__init__(
            uvicorn.Config(
                self._app,
                interface="asgi3",
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=int(DRAIN_SECONDS),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; raises UserError when another process has begun to listen there since the socket was bound."""
        try:
            await super().startup(sockets)
        except OSError as error:
            raise UserError(f"cannot listen: {error.strerror}; choose another port with --port") from error
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections; answer what comes on those that there are, and close each after its answer.

        A connection that is kept alive may carry a request at this moment, so it is closed only when nothing has come
        for a while.
        """
        self.service.is_draining = True
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_SECONDS
        seen, quiet_since = self.server_state.total_requests, loop.time()
        while loop.time() < min(end, quiet_since + QUIET_SECONDS) and not self.force_exit:
            await asyncio.sleep(0.02)
            if self.server_state.tasks or self.server_state.total_requests != seen:
                seen, quiet_since = self.server_state.total_requests, loop.time()
        await super().shutdown(sockets)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_last(message: Any) -> None:
            if self.service.is_draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        await self.service.asgi(scope, receive, send_last)


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody else has; nothing is accepted on it yet. Raises UserError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host!r} is no address of this machine: {error}; leave it out for 127.0.0.1"
        ) from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(f"cannot serve at {host} port {port}: {error.strerror}; choose another with --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where the socket is reached from this machine."""
    host, port = bound.getsockname()[:2]
    match host:
        case "0.0.0.0":
            host = "127.0.0.1"
        case "::":
            host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(service: Service, bound: socket.socket, *, ready: Callable[[str], None]) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then those accepted so far. `ready` is told the URL when that begins."""
    url = url_of(bound)

    def begin() -> None:
        if is_loopback(urlsplit(url).hostname or ""):
            service.shelf.announce(url)
        ready(url)

    try:
        Server(service, ready=begin).run(sockets=[bound])
    finally:
        service.close()
