"""Demonstrations that name classes, read in closed form: what tells the classes apart counts for more in a vector.

Eight labelled texts are far too few to learn from, but the names of their classes say which directions matter: in
vectors of tweets, what tells "anger" from "joy" is a small part, and whoever asks for emotions needs it larger. So a
prompt's demonstrations become fast weights (linear attention; arXiv 2102.11174), and a query's vector v becomes

    v + evidence * M v, at unit length

    M = SPAN * (projection on the span of the names' differences)
      + PAIRS * (cross-covariance of texts and their classes' names, symmetric, scaled to norm 1)

The span knows only which classes there are, so it should be told all, also those that no text is shown of; the pairs
also know which text is of which class. The evidence is how well texts and names agree, 0 to 1: where a name is no
nearer to its text than to another, nothing is changed at all.
Strengths were chosen on tasks of the training labels, none of them an evaluation set (train/results/demonstrations.md).
This is ours, in neither paper, and nothing in it is trained.

Shapes: V vectors, K demonstrations, C classes, E width of an embedding, R rows of the factors of M.
"""

import numpy as np

from epic_search.encoder.prompt import Prompt

SPAN = 0.5
PAIRS = 0.5
CERTAIN = 0.03  # mean cosine of texts and their names, from their means, at which pairs are believed
NOTHING = 1e-4  # a singular value or a length below is noise


class Emphasis:
    """What the classes that a prompt's demonstrations name change in vectors. M is kept as two (R, E) factors.

    `others_CE`: the names of classes that no text is shown of.
    """

    def __init__(
        self,
        texts_KE: np.ndarray,
        names_KE: np.ndarray,
        others_CE: np.ndarray | None = None,
        *,
        span: float = SPAN,
        pairs: float = PAIRS,
        certain: float = CERTAIN,
    ) -> None:
        assert texts_KE.shape == names_KE.shape, (texts_KE.shape, names_KE.shape)
        all_CE = names_KE if others_CE is None else np.concatenate([names_KE, others_CE])
        _, strengths, directions_CE = np.linalg.svd(all_CE - all_CE.mean(axis=0), full_matrices=False)
        span_RE = directions_CE[strengths > NOTHING]
        texts_KE, names_KE = texts_KE - texts_KE.mean(axis=0), names_KE - names_KE.mean(axis=0)
        agreement = float((_unit(texts_KE) * _unit(names_KE)).sum(axis=1).mean())
        evidence = float(np.clip(agreement / certain, 0, 1)) if certain else 1.0
        cross = evidence * pairs / (2 * max(_norm(texts_KE, names_KE), NOTHING))
        self._left_RE = np.concatenate([span_RE, texts_KE, names_KE])
        self._right_RE = np.concatenate([evidence * span * span_RE, cross * names_KE, cross * texts_KE])

    @classmethod
    def of(cls, prompt: Prompt) -> "Emphasis | None":
        """What a prompt changes; None where it shows no texts of two classes, or has no vectors of them."""
        shown = [i for i, one in enumerate(prompt.demonstrations) if one.names_class and not one.alone]
        others = [i for i, one in enumerate(prompt.demonstrations) if one.alone]
        if prompt.kind != "soft" or len({prompt.demonstrations[i].passage for i in shown}) < 2:
            return None
        texts_KE, names_KE = prompt.vectors_SE.reshape(len(prompt.demonstrations), 2, -1).swapaxes(0, 1)
        return cls(texts_KE[shown], names_KE[shown], names_KE[others])

    def __call__(self, vectors_VE: np.ndarray) -> np.ndarray:
        """(V, E) unit-length vectors with what matters emphasised."""
        return _unit(vectors_VE + (vectors_VE @ self._left_RE.T) @ self._right_RE)


def _unit(rows_NE: np.ndarray) -> np.ndarray:
    return rows_NE / np.linalg.norm(rows_NE, axis=1, keepdims=True).clip(min=NOTHING)


def _norm(texts_KE: np.ndarray, names_KE: np.ndarray) -> float:
    """The spectral norm of (T'N + N'T) / 2, by way of a basis of the 2K rows."""
    _, corner = np.linalg.qr(np.concatenate([texts_KE, names_KE]).T)
    swapped = np.roll(corner, len(texts_KE), axis=1)
    return float(np.linalg.norm(corner @ swapped.T, 2)) / 2
