"""Does indexing take longer than encoding alone, and does its memory grow with the corpus?

    python benchmarks/indexing.py --out indexing.json --plot indexing.svg
    python benchmarks/indexing.py --documents 600 --rounds 1                              # a minute or two
    python benchmarks/indexing.py --rounds 0 --grow 10000 --grow 100000 --out memory.json  # memory alone

Indexes documentation of Python's standard library, or --corpus FILE, into an empty folder; then encodes the same chunks
of passages again, with their token ids known, and nothing else. Both take turns, after one of each that is not counted.
`ratio`: seconds of indexing, from the first byte to the last on the disk, to seconds of encoding alone (both medians).

The timeline says when each stage was busy with a chunk: `read` (reading, looking up what is stored, cutting and
tokenising), `encode`, `store`. `idle`: what part of the time between the first chunk's encoding and the last's the
encoder waited for the others.

--grow: indexes synthetic documents of one passage each, with random unit vectors, each number of them in a process of
its own, and reports the most memory (RSS, MiB) that it and the store's process had. On Linux.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer
from rounds import facts, spread, take_turns

from epic_search import stdlib
from epic_search.encoder import Encoder
from epic_search.index import index_corpus, indexer
from epic_search.index.contents import Contents
from epic_search.index.store.edge import EdgeStore

STAGES = ("read", "encode", "store")
Busy = tuple[str, float, float]
"""A stage, and when it began and ended with a chunk, in seconds."""


def main(
    encoder: str = "epic-mini",
    corpus: Annotated[Path | None, typer.Option(help="Default: the standard library's documentation.")] = None,
    documents: Annotated[int, typer.Option(help="So many of it.")] = 3000,
    rounds: int = 3,
    grow: Annotated[list[int], typer.Option(help="Numbers of synthetic documents; may be repeated.")] = [],  # noqa: B006
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Measure indexing."""
    results: dict[str, Any] = {}
    if rounds:
        results |= against_encoding(encoder, corpus, documents, rounds=rounds, plot=plot)
    if grow:
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            results["memory"] = {number: pool.apply(memory, (number,)) for number in grow}
        for number, found in results["memory"].items():
            print(f"{number:9,} documents: {', '.join(f'{what} {mib:,.0f} MiB' for what, mib in found.items())}")
    if out is not None:
        out.write_text(json.dumps(facts(encoder=encoder, rounds=rounds) | results, indent=2) + "\n", "utf-8")


def against_encoding(
    name: str, corpus: Path | None, documents: int, *, rounds: int, plot: Path | None
) -> dict[str, Any]:
    """Indexing beside encoding alone."""
    encoder = Encoder.load(name)
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "corpus.jsonl"
        write(corpus, source, documents)
        timeline: list[Busy] = []
        chunks: list[tuple[list[str], list[list[int]]]] = []

        def index() -> None:
            timeline.clear()
            chunks.clear()
            with tempfile.TemporaryDirectory(dir=work) as home, watched(encoder, timeline, chunks):
                index_corpus(source, name="timed", encoder=encoder, home=Path(home))

        def encode() -> None:
            for texts, ids in chunks:
                encoder.encode_passages(texts, ids=ids)

        seconds = take_turns({"indexing": index, "encoding": encode}, rounds=rounds)
    found = {what: spread(values) for what, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["indexing"], seconds["encoding"], strict=True)]
    ratio = found["indexing"]["median"] / found["encoding"]["median"]
    busy = {stage: sum(end - begin for name, begin, end in timeline if name == stage) for stage in STAGES}
    idle = idle_share(timeline)
    passages = sum(len(texts) for texts, _ in chunks)
    print(f"{documents:,} documents, {passages:,} passages in {len(chunks)} chunks")
    for what, value in found.items():
        print(f"  {what:10}{value['median']:8.2f} s  ({value['p10']:.2f} to {value['p90']:.2f})")
    print(f"  ratio     {ratio:8.3f}    (by rounds: {', '.join(f'{value:.3f}' for value in ratios)})")
    print(f"  busy in the last round: {', '.join(f'{s} {busy[s]:.2f} s' for s in STAGES)}; encoder idle {idle:.1%}")
    if plot is not None:
        draw(timeline, plot)
    return {
        "documents": documents,
        "passages": passages,
        "seconds": found,
        "ratio": ratio,
        "ratios": ratios,
        "busy": busy,
        "idle": idle,
        "timeline": timeline,
    }


def write(corpus: Path | None, target: Path, count: int) -> None:
    """The first documents, as JSON lines."""
    if corpus is not None:
        with corpus.open(encoding="utf-8") as file:
            target.write_text("".join(islice(file, count)), encoding="utf-8")
    else:
        target.write_text("".join(json.dumps(document) + "\n" for document in stdlib.documents(count)), "utf-8")


@contextmanager
def watched(encoder: Encoder, timeline: list[Busy], chunks: list[tuple[list[str], list[list[int]]]]) -> Iterator[None]:
    """Note in `timeline` when each stage is busy, and in `chunks` what the encoder gets."""
    read, encode, put = indexer._Run._chunks, encoder.encode_passages, Contents.put

    def timed(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def run(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                timeline.append((stage, begin, time.perf_counter()))

        return run

    def reading(*args: Any) -> Iterator[Any]:
        found = read(*args)
        take = timed("read", lambda: next(found, None))
        return iter(take, None)

    def encoding(texts: Sequence[str], *, ids: Sequence[Sequence[int]], **options: Any) -> np.ndarray:
        chunks.append((list(texts), [list(row) for row in ids]))
        return timed("encode", encode)(texts, ids=ids, **options)

    indexer._Run._chunks, Contents.put = reading, timed("store", put)  # type: ignore[method-assign, assignment]
    encoder.encode_passages = encoding  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        indexer._Run._chunks, Contents.put = read, put  # type: ignore[method-assign]
        del encoder.encode_passages


def idle_share(timeline: Sequence[Busy]) -> float:
    """What part of the time from the first chunk's encoding to the last's end was none."""
    spans = sorted((begin, end) for stage, begin, end in timeline if stage == "encode")
    return 1 - sum(end - begin for begin, end in spans) / (spans[-1][1] - spans[0][0])


def draw(timeline: Sequence[Busy], path: Path) -> None:
    """A bar for each chunk in each stage, over seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.subplots()
    first = min(begin for _, begin, _ in timeline)
    for row, stage in enumerate(STAGES):
        bars = [(begin - first, end - begin) for name, begin, end in timeline if name == stage]
        axes.broken_barh(bars, (row - 0.4, 0.8), edgecolor="white", linewidth=0.5, facecolor=f"C{row}")
    axes.set_yticks(range(len(STAGES)), STAGES)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


class Random:
    """An encoder whose vectors are random: what remains is the work of the index."""

    name = reference = fingerprint = "random"
    dim = 256
    config = SimpleNamespace(max_length=256, dim=None)

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def token_ids(self, texts: Sequence[str], **_: Any) -> list[list[int]]:
        """A token a word."""
        return [list(range(len(text.split()))) for text in texts]

    def split(self, texts: Sequence[str], **_: Any) -> list[list[str]]:
        """No text is long."""
        assert not texts, texts[0]
        return []

    def encode_passages(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """Unit vectors of no meaning, (P, dim)."""
        vectors_PE = self._random.standard_normal((len(texts), self.dim), dtype=np.float32)
        return vectors_PE / np.linalg.norm(vectors_PE, axis=1, keepdims=True)


def memory(documents: int) -> dict[str, float]:
    """Most memory of this process and of the store's after indexing so many documents, MiB."""
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "corpus.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for number in range(documents):
                text = " ".join(f"w{word}" for word in random.zipf(1.3, 80) % 30_000)
                file.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")
        most: dict[str, float] = {}
        close = EdgeStore.close

        def closing(store: EdgeStore) -> None:
            most["store"] = peak(store._process.pid)
            close(store)

        EdgeStore.close = closing  # type: ignore[method-assign]
        report = index_corpus(source, name="grown", encoder=Random(), home=Path(work) / "home")  # type: ignore[arg-type]
        assert report.documents == documents, report
    return {"indexer": peak(os.getpid()), **most}


def peak(process: int) -> float:
    """The most memory that a process had, MiB. Of a child, getrusage would tell what its parent had when it began."""
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    typer.run(main)
