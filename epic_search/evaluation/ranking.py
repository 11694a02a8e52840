"""From the scores of all documents to the ranking that mteb asks for."""

from collections.abc import Mapping, Sequence

import numpy as np


def best_documents(
    scores_D: np.ndarray, position: Mapping[str, int], *, top_k: int, candidates: Sequence[str] | None = None
) -> dict[str, float]:
    """{document id: score} of the `top_k` best documents, best first; of the `candidates` alone where they are given.

    `position`: where each document's score stands in `scores_D`, in that order. Candidates without one are left out.
    """
    ids = list(position) if candidates is None else [document for document in candidates if document in position]
    rows_C = np.array([position[document] for document in ids], dtype=int)
    best = np.argsort(-scores_D[rows_C], kind="stable")[:top_k]
    return {ids[i]: float(scores_D[rows_C[i]]) for i in best}
