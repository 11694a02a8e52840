"""How far should a taught pair reach, while nothing is known? On training data.

    python benchmarks/reach.py --pairs 1 --pairs 8 --pairs 32 --pairs 128

Sources of the training pairs become small collections: 600 passages, and up to 4 queries of each where a source has
several queries with one answer ("shared"), else one. Some queries are taught, drawn at random; all others are asked.
"related": the gain in reciprocal rank, times 100, of queries whose passage was taught by another query. "others": that
of all the rest, which teaching can only harm; with 600 passages these are most, while users teach what is asked often.
The reach is the default of `epic_search/index/feedback.py`, which the pairs change as they do there. Dense rankings,
means over --draws. Data: EPIC_SEARCH_DATA (default ../shared/data).
"""

import gzip
import json
import os
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import numpy as np
import typer

from epic_search.encoder import Encoder
from epic_search.index import feedback

DATA = Path(os.environ.get("EPIC_SEARCH_DATA", "../shared/data")) / "train"
SOURCES = [
    "squad",
    "stackexchange",
    "fairytaleqa",
    "medquad",
    "tech_docs",
    "pubmedqa",
    "snli",
    "quora",
    "nl2bash",
    "aws",
    "climate",
    "tldr",
]
PASSAGES, QUERIES = 600, 4
REACHES = [0.9, 0.8, 0.75, 0.7, 0.65]


def main(
    pairs: Annotated[list[int], typer.Option(help="How many queries are taught; may be given again.")] = [1, 8, 32],  # noqa: B006
    model: str = "epic-mini",
    draws: int = 3,
) -> None:
    """Print what each reach brings to related queries and costs the others."""
    encoder = Encoder.load(model)
    collections = {source: collection(source, encoder) for source in SOURCES}
    print("reach  taught  related  others")
    for count in pairs:
        for reach in REACHES:
            with patch.multiple(feedback, REACH=reach):
                found = [
                    outcome(*data, count=count, seed=seed) for data in collections.values() for seed in range(draws)
                ]
            related, others = np.nanmean(np.array(found), axis=0)
            print(f"{reach:5.2f}  {count:6}  {100 * related:+7.2f}  {100 * others:+6.2f}", flush=True)


def collection(source: str, encoder: Encoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of queries (K, E), each one's passage (K,), and vectors of the passages (P, E)."""
    queries: dict[str, dict[str, None]] = {}
    with gzip.open(DATA / f"{source}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            queries.setdefault(row["positive"], {})[row["query"]] = None
    shared = [passage for passage, asked in queries.items() if len(asked) > 1]
    candidates = shared if len(shared) > PASSAGES // 3 else list(queries)
    order = np.random.default_rng(0).permutation(len(candidates))[:PASSAGES]
    passages = [candidates[place] for place in order]
    asked = [(query, number) for number, one in enumerate(passages) for query in list(queries[one])[:QUERIES]]
    vectors_KE = encoder.encode_queries([query for query, _ in asked], prompt=encoder.prompt())
    return vectors_KE, np.array([number for _, number in asked]), encoder.encode_passages(passages)


def outcome(
    queries_KE: np.ndarray, answer_K: np.ndarray, passages_PE: np.ndarray, *, count: int, seed: int
) -> tuple[float, float]:
    """Mean gains in reciprocal rank of related queries (nan where there are none) and of the others."""
    order_K = np.random.default_rng(seed).permutation(len(queries_KE))
    taught_T, asked_Q = order_K[:count], order_K[count:]
    right_TE = passages_PE[answer_K[taught_T]]
    reach = feedback.chosen_reach(queries_KE[taught_T], right_TE, list(answer_K[taught_T]))
    moved_QE = np.empty_like(queries_KE[asked_Q])
    for place, query_E in enumerate(queries_KE[asked_Q]):
        similarity_T = queries_KE[taught_T] @ query_E
        nearest = np.argsort(-similarity_T)[: feedback.NEIGHBOURS]
        weights = feedback.weights(similarity_T[nearest], reach=reach)
        moved_QE[place] = feedback.moved(query_E, weights, right_TE[nearest], boost=1.0)
    gain_Q = reciprocal_ranks(moved_QE @ passages_PE.T, answer_K[asked_Q]) - reciprocal_ranks(
        queries_KE[asked_Q] @ passages_PE.T, answer_K[asked_Q]
    )
    related_Q = np.isin(answer_K[asked_Q], answer_K[taught_T])
    return (gain_Q[related_Q].mean() if related_Q.any() else np.nan), gain_Q[~related_Q].mean()


def reciprocal_ranks(scores_QP: np.ndarray, answer_Q: np.ndarray) -> np.ndarray:
    """(Q,) 1 / rank of each query's answer."""
    own_Q1 = np.take_along_axis(scores_QP, answer_Q[:, None], axis=1)
    return 1.0 / (1 + (scores_QP > own_Q1 + 1e-6).sum(axis=1))


if __name__ == "__main__":
    typer.run(main)
