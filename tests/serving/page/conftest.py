"""Chromium, and a server whose page it opens. Where there is no Chromium, these tests are skipped."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from serving_helpers import HOSTILE, server_process

from epic_search.encoder import Encoder
from epic_search.index import index_corpus

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 60_000  # milliseconds until a test says what it waited for
ANIMALS = ["otter", "heron", "lynx", "newt", "stoat", "raven"]
PLACES = ["river", "marsh", "forest", "barn"]
LONG = " ".join(f"Sentence {n} of a long story about an owl." for n in range(60))

OpenPage = Callable[..., Page]


def documents() -> Iterator[dict[str, Any]]:
    """24 notes with fields of three types, a long one, and one that means harm."""
    for n, (place, animal) in enumerate((place, animal) for place in PLACES for animal in ANIMALS):
        yield {
            "_id": f"note/{n}",
            "title": f"The {animal} of the {place}",
            "text": f"The {animal} sleeps in the {place}, says note {n}.",
            "animal": animal,
            "number": n,
            "seen": n % 3 == 0,
            "link": f"https://notes.example/{n}",
        }
    yield {"_id": "long", "title": "A long story", "text": LONG, "animal": "owl"}
    yield {
        "_id": "a/b c?",
        "title": "<img src=x onerror=alert(1)> bait",
        "text": f"{HOSTILE} <a href='javascript:alert(2)'>bait</a> <style>body{{display:none}}</style>",
        "animal": "<b>wolf</b>",
        "link": "javascript:alert(3)",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a module. While it is open, its event loop runs in this thread, and no other can."""
    named = os.environ.get("EPIC_SEARCH_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in EPIC_SEARCH_CHROMIUM")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=PATIENCE)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def notes_home(tiny_encoder_folder: Path, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    corpus = folder / "notes.jsonl"
    corpus.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    birds = folder / "birds.jsonl"
    birds.write_text(
        "".join(json.dumps({"_id": bird, "text": f"A {bird} sings."}) + "\n" for bird in ("wren", "robin"))
    )
    for path in (corpus, birds):
        index_corpus(path, name=path.stem, encoder=tiny_encoder, home=folder / "home")
    return folder / "home"


@pytest.fixture(scope="module")
def site(notes_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server of two indexes that the tests of a module share; each begins with nothing taught."""
    home = shutil.copytree(notes_home, tmp_path_factory.mktemp("site") / "home")
    with server_process(home, "notes", "birds") as server:
        server.home = home
        yield server


@pytest.fixture
def open_page(browser: Browser, site: SimpleNamespace) -> Iterator[OpenPage]:
    """Opens the page in a window of its own. In the end, nothing must have gone wrong in it, or out to others."""
    windows: list[BrowserContext] = []
    asked: list[str] = []
    faults: list[str] = []

    def open_(*, url: str = site.url, place: str = "", forget: bool = True, **window: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | window))
        context.set_default_timeout(PATIENCE)
        windows.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"a script opened a dialog: {dialog.message}"))
        page.on("console", lambda message: faults.append(message.text) if "Security Policy" in message.text else None)
        if forget:
            context.request.delete(f"{url}/indexes/notes/demonstrations?everything=true")
        page.goto(f"{url}/{place}")
        return page

    yield open_
    for window in windows:
        window.close()
    assert not faults
    assert {url.split("/", 3)[2].split(":")[0] for url in asked} <= {"127.0.0.1"}, asked
