"""Does fusing the dense and the lexical ranking help, and how should it be done?

    python benchmarks/hybrid.py --set cranfield --set cacm --set npl --set cosqa --set scifact --set quora_dup \
        --documents 4000 --queries 300 --out results/hybrid

Retrieval sets are folders of EPIC_SEARCH_DATA (default ../shared/data); of a corpus larger than --documents, what is
relevant to the queries is kept and the rest drawn with a fixed seed (the same for the queries). Each set is indexed
once as `epic-search index` does, below --out, where a later run finds it. Every ranking is made by the store, as
`epic-search query` makes it, and scored by nDCG@10 (linear gains, as trec_eval). The fusions are compared by their mean
over the sets; "least" is the worst difference from dense on any set. Prints two tables; --out gets them as hybrid.json.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from epic_search.encoder import Encoder
from epic_search.index import index_corpus
from epic_search.index.contents import Contents
from epic_search.index.lock import Lock
from epic_search.index.manifest import Manifest
from epic_search.index.ranking import rank
from epic_search.index.store.protocol import RRF, Fusion, Match, StoreQuery

DATA = Path(os.environ.get("EPIC_SEARCH_DATA", "../shared/data")) / "eval"
CUT = 10
KS = (1, 2, 3, 5, 10, 20, 60)
WEIGHTS = ((1.0, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0), (1.0, 2.0))
DEPTHS = (50, 200, 1000)
DBSF = "distribution-based score fusion, depth=100"


@dataclass(frozen=True)
class RetrievalSet:
    """Judged queries: relevance by query and document. `corpus`: the lines of the documents."""

    name: str
    corpus: list[dict[str, str]]
    queries: dict[str, str]
    judged: dict[str, dict[str, int]]


def main(
    sets: Annotated[list[str], typer.Option("--set", help="A folder of the data; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the indexes and hybrid.json.")],
    model: str = "epic-mini",
    documents: Annotated[int, typer.Option(help="Documents of a set at most.")] = 4000,
    queries: Annotated[int, typer.Option(help="Queries of a set at most.")] = 300,
) -> None:
    """Measure dense, lexical and fused rankings."""
    encoder = Encoder.load(model)
    fusions = {
        RRF,
        *(Fusion(k=k, weights=weights) for k in KS for weights in WEIGHTS),
        *(replace(RRF, depth=depth) for depth in DEPTHS),
        *(Fusion(k=60, weights=(1.0, 1.0), depth=depth) for depth in DEPTHS),
    }
    rows: list[dict[str, Any]] = []
    for name in sets:
        data = load(name, documents=documents, queries=queries)
        scores = measure(data, encoder, fusions, out)
        rows.append({"set": name, "documents": len(data.corpus), "queries": len(data.queries), "scores": scores})
        print(f"{name}: dense {scores['dense']:.4f}, lexical {scores['lexical']:.4f}", flush=True)
        (out / "hybrid.json").write_text(
            json.dumps({"model": model, "default": asdict(RRF), "rows": rows}, indent=2) + "\n"
        )
    report(rows)


def load(name: str, *, documents: int, queries: int) -> RetrievalSet:
    """A retrieval set, cut to size."""
    draw = np.random.default_rng(0)
    texts = {row["_id"]: row["text"] for row in lines(DATA / name / "queries.jsonl")}
    judged: dict[str, dict[str, int]] = {}
    for line in (DATA / name / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, relevance = line.split("\t")
        judged.setdefault(query, {})[document] = int(relevance)
    chosen = sorted(draw.permutation(sorted(judged))[:queries].tolist())
    corpus = lines(DATA / name / "corpus.jsonl")
    if len(corpus) > documents:
        needed = {document for query in chosen for document in judged[query]}
        others = draw.permutation([row["_id"] for row in corpus if row["_id"] not in needed])
        kept = needed | set(others[: max(0, documents - len(needed))].tolist())
        corpus = [row for row in corpus if row["_id"] in kept]
    return RetrievalSet(name, corpus, {q: texts[q] for q in chosen}, {q: judged[q] for q in chosen})


def measure(data: RetrievalSet, encoder: Encoder, fusions: set[Fusion], out: Path) -> dict[str, float]:
    """nDCG@10 of the dense, the lexical and every fused ranking, by name."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{data.name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data.corpus))
    index_corpus(file, name=data.name, encoder=encoder, home=out / "indexes", prune=True)
    folder = out / "indexes" / data.name
    vectors_QE = encoder.encode_queries(list(data.queries.values()), prompt=encoder.prompt())
    with Lock(folder) as lock, Contents(folder, Manifest.load(folder), lock=lock) as contents:
        assert contents.lexical is not None
        terms = [contents.lexical.of_query(text) for text in data.queries.values()]

        def score(asked: Sequence[StoreQuery], fusion: Fusion = RRF) -> float:
            found = rank(
                contents.store,
                asked,
                need=CUT + 1,  # a query of quora_dup finds itself
                passages=contents.passages,
                key=lambda match: str(match.payload["id"]),
                fusion=fusion,
                fields=("id", "passage"),
            )
            return ndcg(dict(zip(data.queries, found, strict=True)), data.judged)

        fused = [StoreQuery(*pair) for pair in zip(vectors_QE, terms, strict=True)]
        legs = [StoreQuery(vector_E) for vector_E in vectors_QE], [StoreQuery(sparse=sparse) for sparse in terms]
        rankings = zip(*(contents.store.search(leg, limit=100, fields=("id",)) for leg in legs), strict=True)
        summed = dict(zip(data.queries, map(distributions_summed, rankings), strict=True))
        return {
            "dense": score(legs[0]),
            "lexical": score(legs[1]),
            DBSF: ndcg(summed, data.judged),
            **{label(fusion): score(fused, fusion) for fusion in fusions},
        }


def distributions_summed(rankings: Sequence[Sequence[Match]]) -> list[Match]:
    """Qdrant's DBSF: scores of each ranking scaled, its mean -3 and +3 deviations to 0 and 1, and summed."""
    total: dict[str, float] = {}
    owners: dict[str, str] = {}
    for matches in rankings:
        scores = np.array([match.score for match in matches])
        spread = 6 * scores.std(ddof=1) if len(scores) > 1 else 0.0
        for match in matches:
            share = (match.score - scores.mean()) / spread + 0.5 if spread else 0.5
            total[match.id] = total.get(match.id, 0.0) + share
            owners[match.id] = match.payload["id"]
    best: dict[str, Match] = {}
    for id in sorted(total, key=lambda id: -total[id]):
        best.setdefault(owners[id], Match(id, total[id], {"id": owners[id]}))
    return list(best.values())


def ndcg(found: Mapping[str, Sequence[Match]], judged: Mapping[str, Mapping[str, int]]) -> float:
    """The mean nDCG@10; in quora_dup, where query tq7 is document q7 with a t before it, no query finds itself."""
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    scores = []
    for query, matches in found.items():
        ids = [match.payload["id"] for match in matches if f"t{match.payload['id']}" != query][:CUT]
        gains = [judged[query].get(id, 0) for id in ids]
        ideal = sorted(judged[query].values(), reverse=True)[:CUT]
        scores.append(float(np.dot(gains, discounts[: len(gains)]) / np.dot(ideal, discounts[: len(ideal)])))
    return float(np.mean(scores))


def label(fusion: Fusion) -> str:
    """A fusion in a few characters."""
    return f"k={fusion.k} weights={fusion.weights[0]:g}:{fusion.weights[1]:g} depth={fusion.depth}"


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """The default on each set, then all fusions by their mean."""
    print("\n| set | documents | queries | dense | lexical | hybrid | hybrid - dense |\n|---|---|---|---|---|---|---|")
    default = label(RRF)
    for row in rows:
        of = row["scores"]
        cells = [f"{of[mode]:.4f}" for mode in ("dense", "lexical", default)]
        difference = f"{of[default] - of['dense']:+.4f}"
        print(f"| {row['set']} | {row['documents']:,} | {row['queries']} | {' | '.join(cells)} | {difference} |")
    means = {name: float(np.mean([row["scores"][name] for row in rows])) for name in rows[0]["scores"]}
    least = {name: min(row["scores"][name] - row["scores"]["dense"] for row in rows) for name in means}
    print(f"| mean | | | {means['dense']:.4f} | {means['lexical']:.4f} | {means[default]:.4f} | |")
    print("\n| ranking | mean | least |\n|---|---|---|")
    for name in sorted(means, key=lambda name: -means[name]):
        print(f"| {name} | {means[name]:.4f} | {least[name]:+.4f} |")


def lines(path: Path) -> list[dict[str, str]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    typer.run(main)
