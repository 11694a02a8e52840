"""Relevance feedback that neighbours share: a query moves towards what was taught for queries like it.

Rocchio ("Relevance feedback in information retrieval", in The SMART Retrieval System, 1971) adds the mean vector of the
relevant documents to a query's. Here a query takes over the feedback that was given to its neighbours, the more the
nearer they are: kernel regression (Nadaraya, 1964; Watson, 1964) over taught pairs. How near is near enough depends on
the collection: where many queries have one answer, a far reach helps, and where each has its own, it harms. A few pairs
cannot tell, and a user who corrects a result wants related queries to follow, so the reach is far at first; as soon as
the pairs tell, leaving each out in turn, they choose it. The default was settled on training data
(`benchmarks/reach.py`).

Shapes: K pairs, U different right passages among them, E dimensions of a vector.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from epic_search.index.store.protocol import Sparse

NEIGHBOURS = 8  # pairs that a query may be moved by
SAME = 0.997  # cosine of a query and itself, encoded in another batch or precision
SLOPE = 0.05  # the cosine over which a pair's weight falls to a part
REACH = 0.75  # where nothing is known: the cosine at which a pair weighs half as much as the query's own
REACHES = (0.9, 0.85, 0.8, REACH, 0.7, 0.65, 0.6, 0.5)
# How much better than REACH another must be, in reciprocal ranks of the pairs, together: more than what one pair loses
# that falls from first to second place.
EVIDENCE = 0.51


def weights(similarities_K: np.ndarray, *, reach: float) -> np.ndarray:
    """(K,) how much each pair counts for a query with these cosines to the pairs' queries, descending; sum at most 1.

    A query that was taught itself goes by its own pairs alone.
    """
    weights_K = 1.0 / (1.0 + np.exp((reach - similarities_K[:NEIGHBOURS]) / SLOPE))
    if len(similarities_K) and similarities_K[0] >= SAME:
        weights_K = (similarities_K[:NEIGHBOURS] >= SAME).astype(np.float32)
    rest_K = np.zeros(max(0, len(similarities_K) - NEIGHBOURS))
    return np.concatenate([weights_K / max(1.0, weights_K.sum()), rest_K])


def moved(vector_E: np.ndarray, weights_K: np.ndarray, passages_KE: np.ndarray, *, boost: float) -> np.ndarray:
    """(E,) the query's vector plus `boost` times the weighted passages, at unit length."""
    sum_E = vector_E + boost * (weights_K.astype(np.float32) @ passages_KE)
    return sum_E / np.linalg.norm(sum_E)


def expanded(query: Sparse, passages: Sequence[Sparse], shares: Sequence[float]) -> Sparse:
    """The query's terms and those of the passages; a passage's together weigh its share of the query's together."""
    total = query.weights_T.sum()
    terms, weights_T = [query.terms_T], [query.weights_T]
    for passage, share in zip(passages, shares, strict=True):
        if len(passage.terms_T):
            terms.append(passage.terms_T)
            weights_T.append(passage.weights_T * (share * total / passage.weights_T.sum()))
    different_T, places = np.unique(np.concatenate(terms), return_inverse=True)
    summed_T = np.bincount(places, weights=np.concatenate(weights_T), minlength=len(different_T))
    return Sparse(different_T, summed_T.astype(np.float32))


def chosen_reach(queries_KE: np.ndarray, passages_KE: np.ndarray, answers: Sequence[Hashable]) -> float:
    """The reach with which pairs predict each other best.

    Each pair's query is moved by the other pairs, and its passage is ranked among all that were taught: those are what
    feedback would wrongly raise. The measure is the sum of reciprocal ranks. `answers`: equal for pairs whose passages
    are of one document.
    """
    if len(answers) < 2:
        return REACH
    numbers = {answer: number for number, answer in enumerate(dict.fromkeys(answers))}
    answer_K = np.array([numbers[answer] for answer in answers])
    passages_UE = passages_KE[[answers.index(answer) for answer in numbers]]
    similarities_KK = queries_KE @ queries_KE.T
    np.fill_diagonal(similarities_KK, -np.inf)
    nearest_KN = np.argsort(-similarities_KK, axis=1)[:, : min(NEIGHBOURS, len(answers) - 1)]
    found = {}
    for reach in REACHES:
        moved_KE = np.stack(
            [
                moved(query_E, weights(similarities_K[near_N], reach=reach), passages_KE[near_N], boost=1.0)
                for query_E, similarities_K, near_N in zip(queries_KE, similarities_KK, nearest_KN, strict=True)
            ]
        )
        scores_KU = moved_KE @ passages_UE.T
        own_K1 = np.take_along_axis(scores_KU, answer_K[:, None], axis=1)
        found[reach] = float((1.0 / (1 + (scores_KU > own_K1 + 1e-6).sum(axis=1))).sum())
    best = max(REACHES, key=lambda reach: found[reach])
    return best if found[best] >= found[REACH] + EVIDENCE else REACH
