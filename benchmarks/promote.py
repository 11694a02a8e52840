"""How an index of 20,000 passages travels to a server and back: seconds each way, and whether rankings stay the same.

    python benchmarks/promote.py                                    # to the stub of the tests, over a real socket
    python benchmarks/promote.py --url http://localhost:6333        # to a server of your own

Vectors are drawn at random, so nothing is encoded. Rankings are the first ten passages for a hundred queries, by
vectors alone (of random vectors no two are equally near).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "index"))

from epic_search.index.checksum import checksum
from epic_search.index.contents import Contents
from epic_search.index.folder import delete_index
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.passages import point_id
from epic_search.index.place import place_of, stored_manifest
from epic_search.index.promote import promote, pull
from epic_search.index.store.connection import Server
from epic_search.index.store.protocol import Point, StoreQuery

NAME = "epic-search-benchmark"
BATCH = 1000
VERSION = bytes(32)


def unit(count: int, *, dim: int, seed: int) -> np.ndarray:
    """(count, dim) random unit vectors."""
    vectors_PE = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return vectors_PE / np.linalg.norm(vectors_PE, axis=1, keepdims=True)


def make(home: Path, *, count: int, dim: int) -> None:
    """An index of `count` documents of one passage."""
    folder = home / NAME
    folder.mkdir(parents=True)
    manifest = Manifest(name=NAME, encoder="none", fingerprint="0" * 64, dim=dim)
    with Lock(folder) as lock, Contents(folder, manifest, lock=lock) as contents:
        for first in range(0, count, BATCH):
            ids = [f"d{n}" for n in range(first, min(first + BATCH, count))]
            points = [
                Point(
                    point_id(id, VERSION, 0),
                    {"id": id, "passage": 0, "title": "", "text": f"text of {id}", "payload": {}},
                )
                for id in ids
            ]
            vectors_PE = unit(len(points), dim=dim, seed=first + 1)
            contents.store.upsert(points, {"": vectors_PE})
            contents.store.flush()
            contents.adopt(
                [(id, VERSION, 1, checksum(*rest)) for id, *rest in zip(ids, points, vectors_PE, strict=True)]
            )
        manifest.status, manifest.documents, manifest.passages = "complete", count, count
        manifest.save(folder)


def rankings(home: Path | Server, queries_QE: np.ndarray, name: str = NAME) -> list[list[str]]:
    """The first ten documents for each query."""
    with closing(place_of(name, home)) as place:
        manifest = stored_manifest(place)
        with place.lock() as lock, place.contents(manifest, lock) as contents:
            found = contents.store.search([StoreQuery(row) for row in queries_QE], limit=10, fields=["id"])
    return [[match.payload["id"] for match in matches] for matches in found]


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = options.url
        if url is None:
            from stub_server import StubServer

            url = stack.enter_context(StubServer()).url
        server = Server(url, api_key=os.environ.get("EPIC_SEARCH_QDRANT_API_KEY"), timeout=120)
        make(home, count=options.count, dim=options.dim)
        start = time.perf_counter()
        there = promote(NAME, home=home, server=server)
        sent = time.perf_counter()
        stack.callback(delete_index, NAME, server)
        pull(NAME, home=home, server=server, target="back")
        back = time.perf_counter()
        queries_QE = unit(100, dim=options.dim, seed=0)
        mine, on_server, again = (
            rankings(home, queries_QE),
            rankings(server, queries_QE),
            rankings(home, queries_QE, "back"),
        )
        row = {
            "passages": there.passages,
            "dim": options.dim,
            "promote_s": round(sent - start, 1),
            "pull_s": round(back - sent, 1),
            "compared": there.checked,
            "same_top_10_there": sum(a == b for a, b in zip(mine, on_server, strict=True)),
            "same_top_10_back": sum(a == b for a, b in zip(mine, again, strict=True)),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
