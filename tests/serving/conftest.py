"""A small index of a tiny encoder, an app over it, and a server process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from epic_search.encoder import Encoder
from epic_search.index import index_corpus
from epic_search.serving.app import Service
from epic_search.serving.gate import Gate
from epic_search.serving.metrics import Metrics
from epic_search.serving.security import Access
from epic_search.serving.shelf import Shelf

ANIMALS = ["otter", "heron", "lynx", "newt", "stoat", "raven", "trout"]
HOSTILE = "<script>alert(1)</script> \x1b[31mred\x1b[0m ‮ back"
DOCUMENTS = [
    *({"_id": f"d{n}", "title": f"Note {n}", "text": f"The {animal} sleeps, says note {n}.", "number": n}
      for n, animal in enumerate(ANIMALS * 4)),
    {"_id": "a/b c?", "text": HOSTILE},
]  # fmt: skip
BASE_URL = "http://127.0.0.1:8080"


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


Open = Callable[..., "SimpleNamespace"]


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


@contextmanager
def server_process(home: Path, *arguments: object, **environment: str) -> Iterator[SimpleNamespace]:
    """`epic-search serve` at a free port: `.url`, `.process`, and `.log`, the file that its stderr goes to."""
    log = home.parent / f"serve-{len(list(home.parent.glob('serve-*')))}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "epic_search", "serve", "--home", home, "--port", "0", "--device", "cpu", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
    try:
        while process.poll() is None and not (found := re.search(r" at (http://\S+) ", log.read_text())):
            try:
                process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
        assert process.poll() is None, log.read_text()
        yield SimpleNamespace(url=found[1], process=process, log=log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(made_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server that all tests of a module share: they take back what they teach it."""
    home = shutil.copytree(made_home, tmp_path_factory.mktemp("served") / "home")
    with server_process(home) as process:
        process.home = home
        yield process
