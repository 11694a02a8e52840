"""How much time does a search add to the encoding of its query?

    python benchmarks/search_latency.py --passages 100000 --out /tmp/latency
    python benchmarks/search_latency.py --passages 100000 --quantize int8 --out /tmp/latency
    python benchmarks/search_latency.py --passages 100000 --vectors random --out /tmp/latency    # the worst case

Indexes synthetic documents as `epic-search index` does: words are drawn from a Zipf distribution, with a year and a
language for the filter. The vectors of passages and queries are drawn too, from one distribution: `clustered`, which
has neighbourhoods as those of texts have (see mixture.py), or `random`, which has none. Each query is encoded all the
same, which takes the time it takes, before its drawn vector is searched. Asks one query at a time of the resident
searcher, as the modes and the filter `year>=2010 and lang=en` (one document in six) go, and times the encoder alone on
the same queries. Prints a table of medians and 95th percentiles in ms, and the ratio of both medians; --out gets the
index, which a later run with the same settings finds, and search_latency.json.
"""

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import typer
from mixture import drawn, unit

from epic_search.encoder import Encoder
from epic_search.index import Searcher, index_corpus
from epic_search.index.searcher import Mode

FILTER = "year>=2010 and lang=en"
WORDS_OF_A_DOCUMENT = 80
WORDS_OF_A_QUERY = 7
VOCABULARY = 30_000
PASSAGE_SEED, QUERY_SEED = 1, 2  # of texts

Vectors = Literal["clustered", "random"]


class DrawnVectors:
    """An encoder that encodes queries, and then gives them vectors that are drawn; everything else is its own.

    Passages are not encoded. A text has the same vector each time. `first_stage`: a width that is searched first, as if
    the encoder had been trained for it.
    """

    def __init__(self, encoder: Encoder, vectors: Vectors, *, queries: Sequence[str], first_stage: int | None) -> None:
        self._encoder = encoder
        self._vectors = vectors
        self._of_query = dict(zip(queries, self._drawn(queries), strict=True))
        self.config = encoder.config.model_copy(update={"matryoshka": first_stage and [first_stage]})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_passages(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """Unit vectors of no meaning, (P, dim)."""
        return self._drawn(texts)

    def encode_queries(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        """The same of queries, (Q, dim), after they were encoded."""
        self._encoder.encode_queries(texts, **options)
        return np.stack([self._of_query[text] for text in texts])

    def _drawn(self, texts: Sequence[str]) -> np.ndarray:
        seed = zlib.crc32("\n".join(texts).encode())
        if self._vectors == "clustered":
            return drawn(len(texts), dim=self._encoder.dim, seed=seed)
        shape = len(texts), self._encoder.dim
        return unit(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def main(
    out: Annotated[Path, typer.Option(help="Folder for the index and search_latency.json.")],
    passages: Annotated[int, typer.Option(help="Documents of one passage each.")] = 10_000,
    queries: Annotated[int, typer.Option(help="Queries, one at a time.")] = 200,
    vectors: Annotated[Vectors, typer.Option(help="How vectors are drawn.")] = "clustered",
    quantize: Annotated[Literal["int8"] | None, typer.Option(help="As `epic-search index` has it.")] = None,
    first_stage: Annotated[int | None, typer.Option(help="As `epic-search index` has it.")] = None,
    model: str = "epic-mini",
) -> None:
    """Build, warm up, measure."""
    loaded = Encoder.load(model)
    asked = texts(queries, words=WORDS_OF_A_QUERY, seed=QUERY_SEED)
    encoder: Any = DrawnVectors(loaded, vectors, queries=asked, first_stage=first_stage)
    settings = {
        "passages": passages,
        "vectors": vectors,
        "quantize": quantize,
        "first_stage": first_stage,
        "model": loaded.name,
        "dim": loaded.dim,
    }
    name = "-".join(["latency", *(f"{key}-{value}" for key, value in settings.items() if value is not None)])
    start = time.perf_counter()
    file = out / f"latency-{passages}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lines:
        for n, text in enumerate(texts(passages, words=WORDS_OF_A_DOCUMENT, seed=PASSAGE_SEED)):
            row = {"_id": str(n), "text": text, "year": 2000 + n % 20, "lang": ("en", "de", "fr")[n % 3]}
            lines.write(json.dumps(row) + "\n")
    index_corpus(file, name=name, encoder=encoder, home=out / "indexes", quantize=quantize, first_stage=first_stage)
    build_seconds = time.perf_counter() - start
    with Searcher.open(name, home=out / "indexes", encoder=encoder) as searcher:
        ways: dict[str, Callable[[str], Any]] = {
            "encoding alone": lambda query: encoder.encode_queries([query], prompt=searcher.prompt)
        }
        for mode in get_args(Mode):
            ways[mode] = partial(search, searcher, mode=mode)
            ways[f"{mode}, filtered"] = partial(search, searcher, mode=mode, filter=FILTER)
        rows = timed(asked, ways)
    alone = rows["encoding alone"][0]
    said = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    print(f"\n{said}; built or found in {build_seconds:.0f} s\n")
    print("| one query, k = 10 | p50 ms | p95 ms | p50 / encoding |\n|---|---|---|---|")
    for label, (p50, p95) in rows.items():
        print(f"| {label} | {p50:.2f} | {p95:.2f} | {p50 / alone:.2f} |")
    result = settings | {"queries": queries, "filter": FILTER, "ms": rows}
    (out / "search_latency.json").write_text(json.dumps(result, indent=2) + "\n")


def texts(count: int, *, words: int, seed: int) -> list[str]:
    """Words of a Zipf distribution."""
    random = np.random.default_rng(seed)
    ranks_TW = np.minimum(random.zipf(1.3, (count, words)), VOCABULARY)
    return [" ".join(f"w{rank}" for rank in ranks_W) for ranks_W in ranks_TW]


def search(searcher: Searcher, query: str, **options: Any) -> None:
    """One query."""
    searcher.search([query], **options)


def timed(queries: Sequence[str], ways: Mapping[str, Callable[[str], Any]]) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile of each way to ask, in ms, after a warm-up of ten queries.

    The ways take turns at each query, so that other work on the machine slows all of them.
    """
    seconds: dict[str, list[float]] = {label: [] for label in ways}
    for query in [*queries[:10], *queries]:
        for label, ask in ways.items():
            start = time.perf_counter()
            ask(query)
            seconds[label].append(time.perf_counter() - start)
    of_way = {label: np.percentile(of[10:], [50, 95]) * 1000 for label, of in seconds.items()}
    return {label: (float(p50), float(p95)) for label, (p50, p95) in of_way.items()}


if __name__ == "__main__":
    typer.run(main)
