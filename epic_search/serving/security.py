"""Who may ask, and how much of the server one who asks may take: the checks before a request reaches the app.

A browser on this machine runs pages of others. Such a page cannot read what a server answers to another origin, but it
can send requests, and with a name of its own that it lets point to 127.0.0.1 (DNS rebinding) it is the same origin. So
requests are answered only under known names (an address is none that a stranger controls) and for pages of this
server's own origin.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epic_search.errors import UserError
from epic_search.serving.limits import BODY_BYTES
from epic_search.serving.problems import ApiError

OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})  # nothing of an index is told there
READ_ON = 8  # times the largest body that is answered: so much is read of one that is not
OPEN_FOLDERS = ("/page/", "/static-offline-docs/")


@dataclass(frozen=True)
class Access:
    """`token`: what requests must carry, None for nothing; `hosts`, `origins`: allowed besides addresses and our own.

    `body_bytes`, `body_seconds`: how large a body may be, and how long it may take to come.
    """

    token: str | None = field(default=None, repr=False)
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    body_bytes: int = BODY_BYTES
    body_seconds: float = 20.0

    def check(self, scope: Scope) -> None:
        """Raise ApiError for a request that may not be answered."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_known(host):
            raise ApiError(
                403, f"this server does not answer to the host '{host}'", "use its address, or serve with --allow-host"
            )
        self._check_origin(headers, host, scope["method"])
        if self.token is None or scope["path"] in OPEN or scope["path"].startswith(OPEN_FOLDERS):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compared as bytes: what a header holds need not be ASCII.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            what = "the token is wrong" if given else "a token is needed"
            hint = "send the header 'Authorization: Bearer TOKEN' with the server's token"
            raise ApiError(401, what, hint, headers={"WWW-Authenticate": "Bearer"})

    def _is_known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name == "localhost" or is_address(name) or name in {allowed.lower() for allowed in self.hosts}

    def _check_origin(self, headers: Headers, host: str, method: str) -> None:
        origin = headers.get("origin")
        if origin is not None:
            is_ours = origin in (f"http://{host}", f"https://{host}") or origin in self.origins
        else:
            site = headers.get("sec-fetch-site", "none")
            is_link = headers.get("sec-fetch-mode") == "navigate" and method == "GET"
            is_ours = site in ("none", "same-origin") or is_link
        if not is_ours:
            raise ApiError(
                403,
                f"pages of {origin or 'other sites'} may not use this server",
                "open the server's own page, or serve with --allow-origin",
            )


def is_address(name: str) -> bool:
    """Whether a host is given by an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what is bound to this host."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def check_token(token: str | None, *, host: str) -> None:
    """Raise UserError for a token that no header can carry, and for none where other machines can ask."""
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError("the token must be printable ASCII without spaces; make one with: openssl rand -hex 32")
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines ask, and there is no token; set EPIC_SEARCH_TOKEN (make one with: "
            "openssl rand -hex 32), or leave --host out"
        )


class Guard:
    """Middleware: refuses what `Access` refuses, and reads the body before the app does, in bounded size and time."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._access.check(scope)
            body = await self._body(Headers(scope=scope), receive)
        except ApiError as error:
            if error.status in (408, 413):  # what is left of the body is not waited for
                error.headers = {**(error.headers or {}), "Connection": "close"}
            await error.response()(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        await self._app(scope, _first(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        most = self._access.body_bytes
        declared = headers.get("content-length", "0")
        too_large = ApiError(413, f"the body is larger than {most:,} bytes", "send less at once")
        if declared.isdigit() and int(declared) > READ_ON * most:
            raise too_large
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._access.body_seconds):
                while (message := await receive())["type"] == "http.request":
                    size += len(message.get("body", b""))
                    if size <= most:
                        body += message.get("body", b"")
                    # Most clients listen only when they have sent all: what is a little too large is read to the end.
                    if size > READ_ON * most or (size > most and not message.get("more_body", False)):
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            seconds = f"{self._access.body_seconds:g} seconds"
            raise ApiError(408, f"the body did not come within {seconds}", "send it faster, or less at once") from error
        return None


def _first(body: bytes, receive: Receive) -> Receive:
    """Gives the body, and then what else there is: that the client has gone."""
    is_read = False

    async def again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
