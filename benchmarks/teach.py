"""What teaching brings to queries that were not taught: quality and latency with 8, 32 and 128 taught pairs.

    python benchmarks/teach.py --set banking77 --set cranfield --out train/results/teach.json

banking77: the documents are the names of the 77 intents, and the right one for a question is its intent: many
questions, one answer, as with the articles of a help desk. Pairs come from train.jsonl, queries from test.jsonl.
cranfield: abstracts, and each query has answers of its own. 128 queries are drawn to be taught, each with one of its
relevant documents, and the other 97 are asked. Ways: none; fixed (the first 4 pairs taught are every query's prompt);
nearest (the 4 nearest); boost (the move of epic_search/index/feedback.py); nearest + boost. All in dense searches; none
and boost in hybrid ones, too. Nothing was tuned on these sets.

Quality is nDCG@10 times 100; its difference from none has a 95 % bootstrap interval over queries, for one draw of
pairs. "own first": the share of taught queries that find their document first. "ms": the median of single queries in
an open searcher. "teach" is the time from the call of `teach` to the answer of the next query, which uses it already.
Data: EPIC_SEARCH_DATA (default ../shared/data).
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from epic_search.encoder import Encoder
from epic_search.index import Searcher, index_corpus
from epic_search.index.searcher import Mode
from epic_search.index.taught_pair import Lesson
from epic_search.index.ways import Ways

DATA = Path(os.environ.get("EPIC_SEARCH_DATA", "../shared/data")) / "eval"
NONE, BOOST = Ways("none", boost=0.0), Ways("none", boost=1.0)
WAYS: dict[str, tuple[Mode, Ways]] = {
    "none": ("dense", NONE),
    "fixed": ("dense", Ways("fixed", boost=0.0)),
    "nearest": ("dense", Ways("nearest", boost=0.0)),
    "boost": ("dense", BOOST),
    "nearest + boost": ("dense", Ways("nearest", boost=1.0)),
    "hybrid, none": ("hybrid", NONE),
    "hybrid, boost": ("hybrid", BOOST),
}
FIXED = 4
TIMED = 40  # queries


@dataclass(frozen=True)
class Judged:
    """Documents, and queries with the ids of their relevant documents: to teach, in order, and to ask."""

    documents: dict[str, str]
    teach: list[tuple[str, list[str]]]
    test: list[tuple[str, list[str]]]


def main(
    sets: Annotated[list[str], typer.Option("--set", help="banking77 or cranfield; may be given again.")],
    model: str = "epic-mini",
    pairs: Annotated[list[int], typer.Option(help="How many pairs; may be given again.")] = [8, 32, 128],  # noqa: B006
    limit: Annotated[int, typer.Option(help="Test queries of a set, drawn with the seed.")] = 500,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Measure what taught pairs change."""
    encoder = Encoder.load(model)
    rows: list[dict[str, Any]] = []
    for name in sets:
        judged = {"banking77": banking77, "cranfield": cranfield}[name](np.random.default_rng(seed), limit)
        with tempfile.TemporaryDirectory() as home:
            corpus = Path(home) / "corpus.jsonl"
            corpus.write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in judged.documents.items()))
            index_corpus(corpus, name="set", encoder=encoder, home=Path(home))
            for count in pairs:
                with Searcher.open("set", home=Path(home), encoder=encoder) as searcher:
                    rows += [{"set": name, "pairs": count, **row} for row in measure(searcher, judged, count)]
                    for row in rows[-len(WAYS) :]:
                        print(json.dumps(row), flush=True)
    print(table(rows))
    if out is not None:
        report = {"model": model, "seed": seed, "limit": limit, "rows": rows}
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(searcher: Searcher, judged: Judged, count: int) -> list[dict[str, Any]]:
    """One row for each way, with the first `count` queries taught."""
    searcher.forget_all()
    lessons = [Lesson(query, document=relevant[0]) for query, relevant in judged.teach[:count]]
    searcher.teach_all(lessons[:-1])
    searcher.search([lessons[-1].query])
    start = time.perf_counter()
    searcher.teach_all(lessons[-1:])
    searcher.search([lessons[-1].query])
    teach_seconds = time.perf_counter() - start
    shown = [pair.demonstration for pair in searcher.taught()[:FIXED]]
    fixed = searcher.encoder.prompt(demonstrations=shown)
    queries, relevant = [query for query, _ in judged.test], [set(ids) for _, ids in judged.test]
    rows, bare_Q = [], np.zeros(0)
    for way, (mode, ways) in WAYS.items():
        options: dict[str, Any] = {"mode": mode, "ways": ways, "texts": False}
        options["prompt"] = fixed if way == "fixed" else searcher.encoder.prompt()
        hits = searcher.search(queries, k=10, **options)
        scores_Q = np.array(
            [ndcg([hit.id in ids for hit in found], len(ids)) for found, ids in zip(hits, relevant, strict=True)]
        )
        bare_Q = scores_Q if ways == NONE else bare_Q
        own = searcher.search([one.query for one in lessons], k=1, **options)
        first = [found[0].id == one.document for found, one in zip(own, lessons, strict=True)]
        rows.append(
            {
                "way": way,
                "ndcg": 100 * float(scores_Q.mean()),
                "difference": 100 * float((scores_Q - bare_Q).mean()),
                "interval": interval(100 * (scores_Q - bare_Q)),
                "own": float(np.mean(first)),
                "milliseconds": latency(searcher, queries[:TIMED], **options),
                "teach_seconds": teach_seconds,
                "reach": searcher.reach,
            }
        )
    return rows


def banking77(rng: np.random.Generator, limit: int) -> Judged:
    """Questions of a bank's customers, and the names of what they are about."""
    parts = []
    for file in ("train", "test"):
        with (DATA / "banking77" / f"{file}.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        parts.append([(rows[i]["text"], [rows[i]["label"]]) for i in rng.permutation(len(rows))])
    labels = sorted({label for part in parts for _, (label,) in part})
    return Judged({label: label.replace("_", " ") for label in labels}, parts[0], parts[1][:limit])


def cranfield(rng: np.random.Generator, limit: int) -> Judged:
    """Questions about aeronautics, and abstracts."""
    documents, queries, relevant = {}, {}, {}
    with (DATA / "cranfield" / "corpus.jsonl").open(encoding="utf-8") as lines:
        documents = {row["_id"]: f"{row['title']}\n{row['text']}" for row in map(json.loads, lines)}
    documents = {id: text for id, text in documents.items() if text.strip()}
    with (DATA / "cranfield" / "queries.jsonl").open(encoding="utf-8") as lines:
        queries = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    for line in (DATA / "cranfield" / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0 and document in documents:
            relevant.setdefault(query, []).append(document)
    ids = [list(relevant)[i] for i in rng.permutation(len(relevant))]
    judged = [(queries[id], [str(d) for d in rng.permutation(relevant[id])]) for id in ids]
    return Judged(documents, judged[:128], judged[128 : 128 + limit])


def ndcg(gains: list[bool], relevant: int) -> float:
    """nDCG@10 of a ranking, with relevance 0 or 1."""
    discounts = 1 / np.log2(np.arange(2, 12))
    return float((np.array(gains) * discounts[: len(gains)]).sum() / discounts[: min(10, relevant)].sum())


def interval(differences_Q: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, over 2,000 resamples of queries."""
    chosen_RQ = np.random.default_rng(0).integers(len(differences_Q), size=(2000, len(differences_Q)))
    low, high = np.percentile(differences_Q[chosen_RQ].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def latency(searcher: Searcher, queries: list[str], **options: Any) -> float:
    """The median milliseconds of a single query."""
    seconds = []
    for query in queries:
        start = time.perf_counter()
        searcher.search([query], k=10, **options)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| set | pairs | way | nDCG@10 | difference | 95 % | own first | ms | teach, s |", "|" + "---|" * 9]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {row['set']} | {row['pairs']} | {row['way']} | {row['ndcg']:.1f} | {row['difference']:+.1f} | "
            f"{low:+.1f} to {high:+.1f} | {100 * row['own']:.0f} % | {row['milliseconds']:.0f} | "
            f"{row['teach_seconds']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
