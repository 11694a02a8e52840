"""What requests to a server do when it is slow, gone, overloaded, in the way of a proxy, or no Qdrant at all."""

import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_server import StubServer, Trouble

from epic_search.errors import UserError
from epic_search.index.store import connection
from epic_search.index.store.connection import Connection, Server, ServerError

KEY = "s3cr3t-k3y"
MAKE_CERTIFICATE = [
    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
    *("-addext", "subjectAltName=IP:127.0.0.1"),
]


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(api_key=KEY) as stub:
        yield stub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time."""
    waits: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", waits.append)
    return waits


def ask(stub: StubServer, **options: object) -> int:
    with Connection(Server(stub.url, **{"api_key": KEY, **options})) as connected:
        return len(connected(lambda client: client.get_collections()).collections)


def refused(stub: StubServer, **options: object) -> str:
    """The sentence of a request that fails; it names the server and never its key."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ServerError) as raised:
            ask(stub, **options)
    sentence = str(raised.value)
    assert stub.url in sentence and KEY not in sentence and KEY not in repr(raised.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_troubles_are_tried_again(stub, waits, status):
    stub.next(*[Trouble("status", status=status)] * 4)
    assert ask(stub) == 0
    assert len(stub.requests) == 5
    for tries, wait in enumerate(waits):
        assert 0.5 * 0.25 * 2**tries <= wait <= 0.25 * 2**tries


@pytest.mark.parametrize("kind", ["reset", "truncated"])
def test_what_breaks_off_is_tried_again(stub, waits, kind):
    stub.next(*[Trouble(kind)] * 2)
    assert ask(stub) == 0
    assert len(stub.requests) == 3


def test_a_slow_answer_is_asked_for_again(stub):
    stub.next(Trouble("slow", seconds=1.5))
    assert ask(stub, timeout=1) == 0
    assert len(stub.requests) == 2


@pytest.mark.parametrize(("asked", "waited"), [("3", 3.0), ("0", 0.0)])
def test_retry_after_is_obeyed(stub, waits, asked, waited):
    stub.next(Trouble("status", status=429, headers={"Retry-After": asked}))
    assert ask(stub) == 0
    assert waits == [waited]


def test_retry_after_that_is_a_date_or_longer_than_our_patience(stub, waits):
    stub.next(Trouble("status", status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}))
    assert ask(stub) == 0
    assert len(waits) == 1
    stub.next(Trouble("status", status=429, headers={"Retry-After": "3600"}))
    assert "too many requests" in refused(stub)
    assert len(waits) == 1


def test_tries_are_bounded_in_number(stub, waits):
    stub.next(*[Trouble("status", status=503)] * 100)
    assert "answered 503 (the stub's 503) (8 tries in" in refused(stub)
    assert len(stub.requests) == connection.TRIES
    assert sum(waits) < 40


def test_tries_are_bounded_in_time(stub, monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 2.0)
    stub.next(*[Trouble("slow", seconds=1.5)] * 100)
    start = time.monotonic()
    assert "did not answer within 1 s" in refused(stub, timeout=1)
    assert time.monotonic() - start < 4
    assert len(stub.requests) <= 3


def test_a_server_that_never_answered_is_given_up_soon(waits):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Connection(Server(f"http://127.0.0.1:{port}")) as connected, pytest.raises(UserError) as raised:
        connected(lambda client: client.get_collections())
    assert f"http://127.0.0.1:{port} cannot be reached" in str(raised.value)
    assert len(waits) == connection.FIRST_TRIES - 1


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Trouble("html", status=200), "not Qdrant's"),
        (Trouble("wrong schema"), "not Qdrant's"),
        (Trouble("html", status=302), "302"),
        (Trouble("status", status=403), "refused the key"),
        (Trouble("status", status=400), "answered 400 (the stub's 400)"),
        (Trouble("html", status=404), "check the URL"),
        (Trouble("status", status=501), "501"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_will_not_pass_is_said_at_once(stub, waits, trouble, words):
    stub.next(trouble)
    assert words in refused(stub)
    assert len(stub.requests) == 1 and not waits


def test_no_key_and_a_wrong_key(stub, waits):
    assert "EPIC_SEARCH_QDRANT_API_KEY" in refused(stub, api_key=None)
    sentence = refused(stub, api_key="wr0ng")
    assert "check the key" in sentence and "wr0ng" not in sentence
    assert len(stub.requests) == 2


def test_tls(tmp_path, monkeypatch, waits):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    both, key = tmp_path / "both.pem", tmp_path / "key.pem"
    subprocess.run(
        [*MAKE_CERTIFICATE, "-keyout", str(key), "-out", str(both)],
        check=True,
        capture_output=True,
    )
    both.write_bytes(both.read_bytes() + key.read_bytes())
    with StubServer(api_key=KEY, certificate=both) as stub:
        assert "SSL_CERT_FILE" in refused(stub)
        assert not waits
        monkeypatch.setenv("SSL_CERT_FILE", str(both))
        assert ask(stub) == 0


def test_tls_to_a_server_without(stub, waits):
    server = Server(stub.url.replace("http", "https"), api_key=KEY)
    with Connection(server) as connected, pytest.raises(UserError, match="cannot be spoken to by TLS"):
        connected(lambda client: client.get_collections())
    assert not waits


@pytest.mark.parametrize("url", ["", "localhost:6333", "ftp://host", "http://", "http://host:99999", "http://[::1"])
def test_what_is_no_url(url):
    with pytest.raises(UserError, match="such as http://localhost:6333"):
        Server(url)


def test_a_key_stays_out_of_urls_and_texts():
    with pytest.raises(UserError, match="--api-key") as raised:
        Server(f"https://user:{KEY}@host:6333")
    assert KEY not in str(raised.value)
    server = Server("http://host:6333", api_key=KEY)
    assert KEY not in f"{server} {server!r}"
    assert server.key_is_exposed
    assert not Server("https://host", api_key=KEY).key_is_exposed
    assert not Server("http://localhost:6333", api_key=KEY).key_is_exposed


def test_bugs_are_not_failures_of_the_server(stub):
    with Connection(Server(stub.url, api_key=KEY)) as connected, pytest.raises(ZeroDivisionError):
        connected(lambda client: 1 / 0)


def test_a_server_that_restarts_is_waited_for(tmp_path: Path):
    with StubServer() as first:
        port = first.port
        with Connection(Server(first.url)) as connected:
            connected(lambda client: client.get_collections())
            first.close()
            second: list[StubServer] = []
            import threading

            threading.Timer(1.0, lambda: second.append(StubServer(port=port))).start()
            assert connected(lambda client: client.get_collections()).collections == []
            second[0].close()
