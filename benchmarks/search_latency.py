"""How much time does a search add to the encoding of its query?

    python benchmarks/search_latency.py --passages 100000 --out /tmp/latency

Indexes synthetic documents as `epic-search index` does, with random unit vectors in place of encoded ones: words are
drawn from a Zipf distribution, with a year and a language for the filter. Then asks one query at a time of the resident
searcher, as the modes and the filter `year>=2010 and lang=en` (one document in six) go, and times the encoder alone on
the same queries. Prints a table of medians and 95th percentiles in ms, and the ratio of both medians; --out gets the
index, which a later run finds, and search_latency.json.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from epic_search.encoder import Encoder
from epic_search.index import Searcher, index_corpus

FILTER = "year>=2010 and lang=en"
WORDS_OF_A_DOCUMENT = 80
WORDS_OF_A_QUERY = 7
VOCABULARY = 30_000
NAME = "latency"


class RandomPassages:
    """An encoder whose passages' vectors are random; everything else is the encoder's own."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._random = np.random.default_rng(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_passages(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """Unit vectors of no meaning, (P, dim)."""
        vectors_PE = self._random.standard_normal((len(texts), self._encoder.dim), dtype=np.float32)
        return vectors_PE / np.linalg.norm(vectors_PE, axis=1, keepdims=True)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the index and search_latency.json.")],
    passages: Annotated[int, typer.Option(help="Documents of one passage each.")] = 10_000,
    queries: Annotated[int, typer.Option(help="Queries, one at a time.")] = 200,
    model: str = "epic-mini",
) -> None:
    """Build, warm up, measure."""
    encoder = Encoder.load(model)
    random = np.random.default_rng(1)
    name = f"{NAME}-{passages}"
    start = time.perf_counter()
    if not (out / "indexes" / name).exists():
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{name}.jsonl"
        with file.open("w") as lines:
            for n in range(passages):
                row = {"_id": str(n), "text": text(random, WORDS_OF_A_DOCUMENT), "year": 2000 + n % 20, "lang": lang(n)}
                lines.write(json.dumps(row) + "\n")
        index_corpus(file, name=name, encoder=RandomPassages(encoder), home=out / "indexes")  # type: ignore[arg-type]
    build_seconds = time.perf_counter() - start
    asked = [text(random, WORDS_OF_A_QUERY) for _ in range(queries)]
    rows: dict[str, tuple[float, float]] = {}
    with Searcher.open(name, home=out / "indexes", encoder=encoder) as searcher:
        rows["encoding alone"] = timed(asked, lambda query: encoder.encode_queries([query], prompt=searcher.prompt))
        for mode in ("dense", "lexical", "hybrid"):
            for filter in (None, FILTER):
                label = f"{mode}{', filtered' if filter else ''}"
                rows[label] = timed(asked, lambda query, m=mode, f=filter: searcher.search([query], mode=m, filter=f))  # type: ignore[misc]
    alone = rows["encoding alone"][0]
    print(f"\n{passages:,} passages of {encoder.dim} dimensions, built or found in {build_seconds:.0f} s\n")
    print("| one query, k = 10 | p50 ms | p95 ms | p50 / encoding |\n|---|---|---|---|")
    for label, (p50, p95) in rows.items():
        print(f"| {label} | {p50:.2f} | {p95:.2f} | {p50 / alone:.2f} |")
    result = {"passages": passages, "dim": encoder.dim, "model": model, "filter": FILTER, "ms": rows}
    (out / "search_latency.json").write_text(json.dumps(result, indent=2) + "\n")


def text(random: np.random.Generator, words: int) -> str:
    """Words of a Zipf distribution."""
    return " ".join(f"w{rank}" for rank in np.minimum(random.zipf(1.3, words), VOCABULARY))


def lang(n: int) -> str:
    """One of three languages."""
    return ("en", "de", "fr")[n % 3]


def timed(queries: Sequence[str], search: Callable[[str], Any]) -> tuple[float, float]:
    """Median and 95th percentile, in ms, after a warm-up of ten queries."""
    seconds = []
    for query in [*queries[:10], *queries]:
        start = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(seconds[10:], [50, 95]) * 1000
    return float(p50), float(p95)


if __name__ == "__main__":
    typer.run(main)
