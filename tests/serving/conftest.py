"""A small index of a tiny encoder, an app over it, and a server process of its own."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))

from serving_helpers import BASE_URL, DOCUMENTS, Open, server_process

from epic_search.encoder import Encoder
from epic_search.index import index_corpus
from epic_search.serving.app import Service
from epic_search.serving.gate import Gate
from epic_search.serving.metrics import Metrics
from epic_search.serving.security import Access
from epic_search.serving.shelf import Shelf


@pytest.fixture(scope="session")
def made_home(tiny_encoder_folder: Path, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    corpus = folder / "notes.jsonl"
    corpus.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    index_corpus(corpus, name="notes", encoder=tiny_encoder, home=folder / "home")
    return folder / "home"


@pytest.fixture
def home(made_home: Path, tmp_path: Path) -> Path:
    """A home with the index `notes`, for one test to change."""
    return shutil.copytree(made_home, tmp_path / "home")


@pytest.fixture
def open_app(home: Path, tiny_encoder: Encoder) -> Iterator[Open]:
    """Opens an app in this process: `.client` asks it, `.service` is what answers. No server, so no real clients."""
    opened = []

    def open_(*, places: int = 8, seconds: float = 30.0, names: tuple[str, ...] = ("notes",), **access: Any) -> Any:
        metrics = Metrics()
        shelf = Shelf(names, home=home, load=lambda manifest: tiny_encoder, metrics=metrics)
        gate = Gate(places=places, seconds=seconds)
        service = Service(shelf, gate=gate, access=Access(**access), metrics=metrics, log="off")
        opened.append(service)
        client = TestClient(service.asgi, base_url=BASE_URL, raise_server_exceptions=False)
        return SimpleNamespace(service=service, client=client, shelf=shelf, gate=gate)

    yield open_
    for service in opened:
        service.close()


@pytest.fixture(scope="module")
def served(made_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server that all tests of a module share: they take back what they teach it."""
    home = shutil.copytree(made_home, tmp_path_factory.mktemp("served") / "home")
    with server_process(home) as process:
        process.home = home
        yield process
