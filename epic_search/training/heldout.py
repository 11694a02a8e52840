"""Retrieval quality on held-out pairs: each query against the positives of all of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from epic_search.encoder.encoder import Encoder
from epic_search.training.pairs import Pair


@dataclass(frozen=True)
class Quality:
    """Means over queries: share with the positive in first place, nDCG@10 and reciprocal rank."""

    pairs: int
    accuracy_at_1: float
    ndcg_at_10: float
    mrr: float


def measure(encoder: Encoder, pairs: Sequence[Pair]) -> Quality:
    """Rank the distinct positives of `pairs` for each query, under its task's instruction, without demonstrations."""
    passages = list(dict.fromkeys(pair.positive for pair in pairs))
    place = {text: i for i, text in enumerate(passages)}
    passages_PE = encoder.encode_passages(passages)
    by_task: dict[str | None, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_task[pair.task].append(pair)
    ranks: list[np.ndarray] = []
    for task, mine in by_task.items():
        queries_QE = encoder.encode_queries([pair.query for pair in mine], prompt=encoder.prompt(task=task))
        scores_QP = queries_QE @ passages_PE.T
        own_Q1 = scores_QP[np.arange(len(mine)), [place[pair.positive] for pair in mine]][:, None]
        # Ties and scores that are no numbers count against the encoder.
        ranks.append((~(scores_QP < own_Q1)).sum(axis=1))
    rank_Q = np.concatenate(ranks)
    gains_Q = np.where(rank_Q <= 10, 1 / np.log2(rank_Q + 1), 0.0)
    return Quality(len(pairs), float((rank_Q == 1).mean()), float(gains_Q.mean()), float((1 / rank_Q).mean()))
