"""Demonstrations that name classes, read in closed form: what tells the classes apart counts for more in a vector.

Eight labelled texts are far too few to learn from, but the names of their classes say which directions matter: in
vectors of tweets, what tells "anger" from "joy" is a small part, and whoever asks for emotions needs it larger. So a
prompt's demonstrations add a matrix M of their vectors to the identity, as fast weights do (linear attention; arXiv
2102.11174), and a query's vector v becomes v + M v at unit length:

    M = SPAN * (projection on the span of the names' differences)
      + PAIRS * (cross-covariance of texts and their classes' names, symmetric, scaled to norm 1)

The first part knows only which classes there are; the second one also which text is of which class, and shrinks what
wrong pairs say. Both strengths were chosen on 27 tasks of the training labels, none of them an evaluation set
(train/results/demonstrations.md). This is ours, in neither paper, and nothing in it is trained.

Shapes: V vectors, K demonstrations, E width of an embedding, R rows of the factors of M.
"""

import numpy as np

from epic_search.encoder.prompt import Prompt

SPAN = 0.5
PAIRS = 0.5
NOTHING = 1e-4  # a singular value below is noise


class Emphasis:
    """What the classes that a prompt's demonstrations name change in vectors. M is kept as two (R, E) factors."""

    def __init__(self, texts_KE: np.ndarray, names_KE: np.ndarray, *, span: float = SPAN, pairs: float = PAIRS) -> None:
        assert texts_KE.shape == names_KE.shape, (texts_KE.shape, names_KE.shape)
        texts_KE, names_KE = texts_KE - texts_KE.mean(axis=0), names_KE - names_KE.mean(axis=0)
        _, strengths, directions_KE = np.linalg.svd(names_KE, full_matrices=False)
        span_RE = directions_KE[strengths > NOTHING]
        cross = pairs / (2 * max(_norm(texts_KE, names_KE), NOTHING))
        self._left_RE = np.concatenate([span_RE, texts_KE, names_KE])
        self._right_RE = np.concatenate([span * span_RE, cross * names_KE, cross * texts_KE])

    @classmethod
    def of(cls, prompt: Prompt) -> "Emphasis | None":
        """What a prompt changes; None where it does not name two classes, or has no vectors of its demonstrations."""
        named = [i for i, shown in enumerate(prompt.demonstrations) if shown.names_class]
        if prompt.kind != "soft" or len({prompt.demonstrations[i].passage for i in named}) < 2:
            return None
        both_KE = prompt.vectors_SE.reshape(len(prompt.demonstrations), 2, -1)[named]
        return cls(both_KE[:, 0], both_KE[:, 1])

    def __call__(self, vectors_VE: np.ndarray) -> np.ndarray:
        """(V, E) unit-length vectors with what matters emphasised."""
        moved_VE = vectors_VE + (vectors_VE @ self._left_RE.T) @ self._right_RE
        return moved_VE / np.linalg.norm(moved_VE, axis=1, keepdims=True)


def _norm(texts_KE: np.ndarray, names_KE: np.ndarray) -> float:
    """The spectral norm of (T'N + N'T) / 2, by way of a basis of the 2K rows."""
    _, corner = np.linalg.qr(np.concatenate([texts_KE, names_KE]).T)
    swapped = np.roll(corner, len(texts_KE), axis=1)
    return float(np.linalg.norm(corner @ swapped.T, 2)) / 2
