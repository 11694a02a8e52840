"""How well does an index answer? BEIR folders through the same index and searcher that users call.

    python benchmarks/retrieval.py --model epic-mini --set scifact --set cranfield --set cosqa --demos 0 --demos 4

Prints nDCG@10 and recall@100 for each set and number of demonstrations (mean and range over --seeds draws), and writes
JSON with --out. Data: EPIC_SEARCH_DATA (default ../shared/data). The sets have no training queries, so demonstrations
are pairs of a training file with a like task, never of the set itself. --contextual-alone measures the frozen
Contextual encoder by itself on the same passages: what training starts from.
"""

import csv
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from epic_search.encoder import Demonstration, Encoder, Prompt
from epic_search.index import Searcher, index_corpus
from epic_search.training.pairs import load_pairs
from epic_search.training.recipe import PairData

DATA = Path(os.environ.get("EPIC_SEARCH_DATA", "../shared/data"))
# Set: its instruction, and the training file that demonstrations come from.
SETS = {
    "scifact": ("Given a scientific claim, retrieve abstracts that support or refute the claim", "climate"),
    "cranfield": ("Given a question about aerodynamics, retrieve abstracts that answer it", "pubmedqa"),
    "cosqa": ("Given a web search query, retrieve Python code that answers it", "py_docstring"),
    "cacm": ("Given a question about computing, retrieve abstracts that answer it", "scitldr"),
    "npl": ("Given a question about physics or electronics, retrieve documents that answer it", "scitldr"),
}
DEPTH = 100


def main(
    sets: Annotated[list[str], typer.Option("--set")],
    model: str = "epic-mini",
    demos: Annotated[list[int], typer.Option(help="Numbers of demonstrations.")] = [0, 4],  # noqa: B006
    seeds: int = 3,
    dtype: str = "auto",
    contextual_alone: bool = False,
    out: Path | None = None,
) -> None:
    """Measure one encoder on BEIR folders."""
    encoder = Encoder.load(model, dtype=dtype)  # type: ignore[arg-type]
    if contextual_alone:
        encoder, demos = ContextualAlone(encoder), [0]  # type: ignore[assignment]
    results = []
    with tempfile.TemporaryDirectory() as home:
        for name in sets:
            folder = DATA / "eval" / name
            started = time.monotonic()
            report = index_corpus(folder / "corpus.jsonl", name=name, encoder=encoder, home=Path(home))
            seconds = time.monotonic() - started
            print(f"{name}: {report.documents} documents, {report.passages} passages indexed in {seconds:.0f} s")
            judged = read_qrels(folder / "qrels" / "test.tsv")
            texts = {row["_id"]: row["text"] for row in read_jsonl(folder / "queries.jsonl")}
            task, source = SETS[name]
            with Searcher.open(name, home=Path(home), encoder=encoder) as searcher:
                for k in demos:
                    scores = []
                    for seed in range(seeds if k else 1):
                        prompt = encoder.prompt(task=task, demonstrations=draw(source, k, seed, encoder))
                        hits = searcher.search([texts[query] for query in judged], k=DEPTH, prompt=prompt)
                        scores.append(evaluate(judged, [[hit.id for hit in found] for found in hits]))
                    ndcg, recall = np.array(scores).T
                    print(
                        f"  k={k}: nDCG@10 {ndcg.mean():.4f} ({ndcg.min():.4f} to {ndcg.max():.4f}), "
                        f"recall@{DEPTH} {recall.mean():.4f}"
                    )
                    results.append(
                        {
                            "set": name,
                            "model": model,
                            "k": k,
                            "ndcg_at_10": ndcg.tolist(),
                            f"recall_at_{DEPTH}": recall.tolist(),
                        }
                    )
    if out is not None:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


class ContextualAlone:
    """The Contextual encoder's own vectors behind the encoder's face; prompts do nothing."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.name = self.reference = f"contextual encoder of {encoder.name}"
        self.fingerprint = f"contextual-{encoder.fingerprint}"
        self.config, self.split, self.token_ids = encoder.config, encoder.split, encoder.token_ids
        self.dim = encoder.context([""]).shape[1]  # type: ignore[union-attr]

    def encode_passages(self, texts: list[str], *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        vectors_NC = self._encoder.context(texts).cpu().numpy()  # type: ignore[union-attr]
        if progress is not None:
            progress(len(texts))
        return vectors_NC

    def encode_queries(self, texts: list[str], *, prompt: Prompt | None = None) -> np.ndarray:
        return self.encode_passages(texts)

    def prompt(self, *, task: str | None = None, demonstrations: Sequence[Demonstration] = ()) -> Prompt:
        return Prompt(None, (), np.empty((0, self.dim), dtype=np.float32), self.fingerprint)


def draw(source: str, k: int, seed: int, encoder: Encoder) -> list[Demonstration]:
    """k pairs of a training file whose texts the encoder reads whole."""
    pairs = [
        pair
        for rows in load_pairs(PairData(files=str(DATA / "train" / f"{source}.jsonl.gz"))).values()
        for pair in rows
    ]
    shown: list[Demonstration] = []
    for i in np.random.default_rng(seed).permutation(len(pairs)):
        texts = [pairs[i].query, pairs[i].positive]
        if len(shown) == k:
            break
        if encoder.split(texts) == [[text] for text in texts]:
            shown.append(Demonstration(query=texts[0], passage=texts[1]))
    return shown


def evaluate(judged: dict[str, dict[str, int]], ranked: list[list[str]]) -> tuple[float, float]:
    """Mean nDCG@10 (gains as judged) and mean recall@100 over queries."""
    ndcgs, recalls = [], []
    for relevant, ids in zip(judged.values(), ranked, strict=True):
        gains = [relevant.get(i, 0) for i in ids[:10]]
        best = sorted(relevant.values(), reverse=True)[:10]
        ndcgs.append(discounted(gains) / discounted(best))
        recalls.append(len(relevant.keys() & set(ids[:DEPTH])) / len(relevant))
    return float(np.mean(ndcgs)), float(np.mean(recalls))


def discounted(gains: list[int]) -> float:
    return sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains))


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for query, document, grade in list(csv.reader(file, delimiter="\t"))[1:]:
            if int(grade) > 0:
                judged[query][document] = int(grade)
    return dict(judged)


def read_jsonl(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    typer.run(main)
