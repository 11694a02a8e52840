"""Small corpora, a home folder and an encoder without a model, for every test of the index."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from index_helpers import document
from stand_in import StandIn
from stub_server import StubServer

from epic_search.index.store import connection
from epic_search.index.store.connection import Server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def encoder() -> StandIn:
    return StandIn()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """What speaks Qdrant's REST interface over a socket; who asks it again need not wait."""
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.001)
    with StubServer() as stub:
        yield stub


@pytest.fixture
def there(stub: StubServer) -> Server:
    return Server(stub.url)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write lines (objects become JSON, str and bytes stay) to a file and return its path."""

    def write(*lines: object, name: str = "corpus.jsonl") -> Path:
        path = tmp_path / name
        encoded = [
            line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
            for line in lines
        ]
        path.write_bytes(b"".join(line + b"\n" for line in encoded))
        return path

    return write


@pytest.fixture
def corpus(write: Callable[..., Path]) -> Callable[..., Path]:
    """A file of `count` short documents, each with a word of its own; `changed` ones get another text."""

    def corpus(count: int, *, changed: frozenset[int] = frozenset(), name: str = "corpus.jsonl") -> Path:
        return write(*(document(n, changed=n in changed) for n in range(count)), name=name)

    return corpus
