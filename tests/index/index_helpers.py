"""Documents to index, and what an index holds."""

from pathlib import Path

from stand_in import StandIn

from epic_search.index import Document, Searcher
from epic_search.index.store.protocol import StoreQuery

WORDS = ["apple", "river", "stone", "cloud", "tiger", "paper", "light", "ocean", "metal", "honey", "forest"]


def document(number: int, *, changed: bool = False) -> dict[str, object]:
    some = " ".join(WORDS[(number * 7 + i) % len(WORDS)] for i in range(5))
    text = f"word{number} {some}" + (" rewritten" if changed else "")
    return {"_id": f"d{number}", "title": f"Title {number}", "text": text, "year": 2000 + number % 20}


def stored(home: Path, encoder: StandIn, name: str = "test") -> dict[tuple[str, int], tuple[str, str]]:
    """(document id, passage number) -> (title, text) of everything that the store of an index holds."""
    with Searcher.open(name, home=home, encoder=encoder) as searcher:
        contents = searcher._contents
        queries = [StoreQuery(vector_E) for vector_E in encoder.encode_queries(["anything"])]
        (matches,) = contents.store.search(queries, limit=max(1, contents.passages + 10))
        assert len(matches) == contents.passages == contents.store.count()
    found = {(m.payload["id"], m.payload["passage"]): (m.payload["title"], m.payload["text"]) for m in matches}
    assert len(found) == len(matches)
    return found


def a_document(**payload: object) -> Document:
    return Document("x", "", "text", payload, "line 1", 1, b"")
