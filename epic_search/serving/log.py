"""A line on stderr for every request, and its id in every answer. What was asked for is not logged."""

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epic_search.serving.gate import CLIENT_HAS_GONE
from epic_search.serving.metrics import Metrics

LogStyle = Literal["text", "json", "off"]
REQUEST_ID = "X-Request-Id"
GIVEN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
UNKNOWN = "other"  # the route of a path that the app does not have
LOGGER = logging.getLogger("epic_search.serving")
SAFETY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


class Journal:
    """Middleware, the outermost: names, times, counts and logs each request, whatever becomes of it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, style: LogStyle) -> None:
        self._app = app
        self._metrics = metrics
        self._style = style

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        status = CLIENT_HAS_GONE

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                for name, value in SAFETY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            LOGGER.error("request %s failed", request_id, exc_info=error)  # the client has been told so
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", UNKNOWN)
            method = scope["method"] if route != UNKNOWN else UNKNOWN
            self._metrics.request(method=method, route=route, status=status, seconds=seconds)
            self._write(scope, status, seconds, request_id)

    def _write(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        if self._style == "off":
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        client = scope["client"][0] if scope.get("client") else "-"
        # As it was sent: a path is percent-encoded, so that it holds no control characters.
        path = scope.get("raw_path", b"").decode("latin-1")
        if self._style == "json":
            entry = {
                "time": now,
                "client": client,
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(seconds, 6),
                "request_id": request_id,
            }
            line = json.dumps(entry)
        else:
            line = f"{now} {client} {scope['method']} {path} {status} {1000 * seconds:.0f} ms {request_id}"
        print(line.encode("ascii", errors="backslashreplace").decode(), file=sys.stderr)


def quiet_libraries() -> None:
    """Warnings and worse alone, on stderr: uvicorn's own access log repeats ours."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.access").disabled = True
