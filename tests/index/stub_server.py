"""A Qdrant server for tests: its REST schema over a real socket, answered by the client's own in-memory mode.

Bodies are parsed with the client's models, which are generated from the server's OpenAPI; what does not fit is a 400.
`trouble` holds what happens to the next requests instead of, or after, what they ask for.

Run as a script, it serves until it is stopped and prints its URL first: python stub_server.py [PORT]
"""

import json
import re
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from qdrant_client import QdrantClient
from qdrant_client.http import models

KEPT_BYTES = 100_000
COLLECTION = r"/collections/(?P<name>[^/]+)"


@dataclass
class Trouble:
    """What happens to a request whose method and path match `on`, once its work is done if `after`."""

    kind: str  # status, html, slow, reset, truncated, wrong schema
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    on: str = ""
    after: bool = False


class StubServer:
    """A server on a free port of this machine; use it in a `with` statement."""

    def __init__(
        self, *, api_key: str | None = None, certificate: Path | None = None, max_body: int = 32 * 2**20, port: int = 0
    ) -> None:
        self.client = QdrantClient(":memory:")
        self.api_key = api_key
        self.max_body = max_body
        self.trouble: deque[Trouble] = deque()
        self.requests: list[tuple[str, str, int]] = []  # method, path, length of the body
        self.bodies: list[tuple[str, str, bytes]] = []  # method, path, body of the short ones
        self.lock = threading.Lock()
        self._failing, self._left, self._after = "", 0, False
        self._http = _Http(("127.0.0.1", port), _handler(self))
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            scheme = "https"
        self.port = self._http.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def next(self, *troubles: Trouble) -> None:
        """What happens to the next requests that match."""
        self.trouble.extend(troubles)

    def fail_from(self, pattern: str, time: int, *, after: bool = False) -> None:
        """From the so-many-th request on whose "METHOD path" matches, everything is answered with 503.

        That request itself is carried out first if `after`.
        """
        self._failing, self._left, self._after = pattern, time, after

    def well(self) -> None:
        """Everything is answered again."""
        self._failing = ""

    def trouble_for(self, method: str, path: str) -> Trouble | None:
        """What happens to this request."""
        with self.lock:
            if self.trouble and re.search(self.trouble[0].on, f"{method} {path}"):
                return self.trouble.popleft()
            if self._failing and (self._left <= 0 or re.search(self._failing, f"{method} {path}")):
                self._left -= 1
                if self._left <= 0:
                    return Trouble("status", status=503, after=self._after and self._left == 0)
        return None

    def sent(self, pattern: str) -> list[tuple[str, str, int]]:
        """The requests so far whose "METHOD path" matches."""
        return [request for request in self.requests if re.search(pattern, f"{request[0]} {request[1]}")]

    def close(self) -> None:
        """Stop listening; what is stored stays in `client`."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()

    def __enter__(self) -> "StubServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of a test."""


def parse(kind: Any, body: bytes) -> Any:
    return TypeAdapter(kind).validate_json(body)


Work = Callable[[QdrantClient, dict[str, str], bytes], Any]


def _create(client: QdrantClient, path: dict[str, str], body: bytes) -> bool:
    wanted = parse(models.CreateCollection, body)
    return client.create_collection(
        path["name"],
        vectors_config=wanted.vectors,
        sparse_vectors_config=wanted.sparse_vectors,
        metadata=wanted.metadata,
    )


def _patch(client: QdrantClient, path: dict[str, str], body: bytes) -> bool:
    wanted = parse(models.UpdateCollection, body)
    return client.update_collection(path["name"], metadata=wanted.metadata)


def _index(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    wanted = parse(models.CreateFieldIndex, body)
    return client.create_payload_index(path["name"], wanted.field_name, wanted.field_schema)


def _aliases(client: QdrantClient, path: dict[str, str], body: bytes) -> bool:
    return client.update_collection_aliases(parse(models.ChangeAliasesOperation, body).actions)


def _upsert(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    wanted = parse(models.PointInsertOperations, body)
    assert isinstance(wanted, models.PointsList), "the stub takes points as a list"
    return client.upsert(path["name"], wanted.points, update_mode=wanted.update_mode)


def _retrieve(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    wanted = parse(models.PointRequest, body)
    return client.retrieve(
        path["name"],
        wanted.ids,
        with_payload=wanted.with_payload if wanted.with_payload is not None else True,
        with_vectors=wanted.with_vector or False,
    )


def _delete_points(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    return client.delete(path["name"], parse(models.PointsSelector, body))


def _scroll(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    wanted = parse(models.ScrollRequest, body)
    points, after = client.scroll(
        path["name"],
        scroll_filter=wanted.filter,
        limit=wanted.limit or 10,
        offset=wanted.offset,
        with_payload=wanted.with_payload if wanted.with_payload is not None else True,
        with_vectors=wanted.with_vector or False,
    )
    return {"points": points, "next_page_offset": after}


def _count(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    wanted = parse(models.CountRequest, body)
    return client.count(path["name"], wanted.filter, exact=bool(wanted.exact))


def _facet(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    wanted = parse(models.FacetRequest, body)
    return client.facet(path["name"], wanted.key, facet_filter=wanted.filter, limit=wanted.limit or 10, exact=True)


def _query(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    return client.query_batch_points(path["name"], [parse(models.QueryRequest, body)])[0]


def _query_batch(client: QdrantClient, path: dict[str, str], body: bytes) -> Any:
    return client.query_batch_points(path["name"], parse(models.QueryRequestBatch, body).searches)


ROUTES: list[tuple[str, str, Work]] = [
    ("GET", "/collections", lambda client, path, body: client.get_collections()),
    ("GET", "/aliases", lambda client, path, body: client.get_aliases()),
    ("GET", COLLECTION, lambda client, path, body: client.get_collection(path["name"])),
    ("GET", f"{COLLECTION}/exists", lambda client, path, body: {"exists": client.collection_exists(path["name"])}),
    ("PUT", COLLECTION, _create),
    ("PATCH", COLLECTION, _patch),
    ("DELETE", COLLECTION, lambda client, path, body: client.delete_collection(path["name"])),
    ("POST", "/collections/aliases", _aliases),
    ("PUT", f"{COLLECTION}/index", _index),
    ("PUT", f"{COLLECTION}/points", _upsert),
    ("POST", f"{COLLECTION}/points", _retrieve),
    ("POST", f"{COLLECTION}/points/delete", _delete_points),
    ("POST", f"{COLLECTION}/points/scroll", _scroll),
    ("POST", f"{COLLECTION}/points/count", _count),
    ("POST", f"{COLLECTION}/facet", _facet),
    ("POST", f"{COLLECTION}/points/query", _query),
    ("POST", f"{COLLECTION}/points/query/batch", _query_batch),
]


def _answer(stub: StubServer, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    for wanted, pattern, work in ROUTES:
        match = re.fullmatch(pattern, path)
        if method == wanted and match:
            try:
                with stub.lock:
                    result = work(stub.client, match.groupdict(), body)
            except ValidationError as error:
                return 400, {"status": {"error": f"Format error in JSON body: {error.errors()[0]['msg']}"}, "time": 0.0}
            except ValueError as error:
                code = 404 if "not found" in str(error) else 409 if "already exists" in str(error) else 400
                return code, {"status": {"error": str(error)}, "time": 0.0}
            return 200, {"result": TypeAdapter(Any).dump_python(result, mode="json"), "status": "ok", "time": 0.0}
    return 404, {"status": {"error": f"no route {method} {path}"}, "time": 0.0}


def _handler(stub: StubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            path = self.path.split("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stub.requests.append((self.command, path, len(body)))
            if len(body) < KEPT_BYTES:
                stub.bodies.append((self.command, path, body))
            trouble = stub.trouble_for(self.command, path)
            if stub.api_key is not None and self.headers.get("api-key") != stub.api_key:
                return self._send(401, b"Must provide an API key or an Authorization bearer token")
            if len(body) > stub.max_body:
                return self._send(413, b'{"status": {"error": "Payload too large"}}')
            if trouble is None:
                return self._send(*_encoded(_answer(stub, self.command, path, body)))
            answer = _encoded(_answer(stub, self.command, path, body)) if trouble.after else None
            return self._fail(trouble, answer)

        def _fail(self, trouble: Trouble, answer: tuple[int, bytes] | None) -> None:
            match trouble.kind:
                case "status":
                    error = json.dumps({"status": {"error": f"the stub's {trouble.status}"}, "time": 0.0})
                    self._send(trouble.status, error.encode(), headers=trouble.headers)
                case "html":
                    self._send(trouble.status, b"<html><body>Sign in to the network</body></html>", kind="text/html")
                case "slow":
                    time.sleep(trouble.seconds)
                    self.close_connection = True
                case "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                case "truncated":
                    content = b'{"result": {"points": [' if answer is None else answer[1][: len(answer[1]) // 2]
                    self._send(200, content, length=len(content) + 1000)
                    self.close_connection = True
                case "wrong schema":
                    self._send(200, b'{"result": {"surprise": [1, 2]}, "status": "ok", "time": 0.0}')
                case kind:
                    raise AssertionError(kind)

        def _send(
            self,
            status: int,
            content: bytes,
            *,
            kind: str = "application/json",
            headers: dict[str, str] | None = None,
            length: int | None = None,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    return Handler


def _encoded(answer: tuple[int, dict[str, Any]]) -> tuple[int, bytes]:
    return answer[0], json.dumps(answer[1]).encode()


if __name__ == "__main__":
    import sys

    with StubServer(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0) as stub:
        print(stub.url, flush=True)
        threading.Event().wait()
