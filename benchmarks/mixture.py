"""Vectors drawn from a seeded mixture, for benchmarks of a store that need more of them than can be encoded.

Texts of 20,000 kinds under 1,000 topics. The variance of dimension i falls as 1 / (i + 1), so that neighbours are
meaningful (about 29 dimensions count) and the first dimensions hold most, as in vectors that were trained to be cut
(Matryoshka). A mixture of one dimension is always the same; `seed` says which texts of it are drawn.
"""

from functools import cache

import numpy as np

TOPICS, KINDS = 1000, 20  # kinds of each topic
KIND, NOISE = 0.6, 0.5  # how far a kind is from its topic and a text from its kind; a topic is 1 from the middle


@cache
def kinds(dim: int) -> np.ndarray:
    """(TOPICS * KINDS, dim) centres."""
    random = np.random.default_rng(0)
    topics_CE = random.standard_normal((TOPICS, dim), dtype=np.float32)
    return topics_CE.repeat(KINDS, axis=0) + KIND * random.standard_normal((TOPICS * KINDS, dim), dtype=np.float32)


def drawn(count: int, *, dim: int, seed: int) -> np.ndarray:
    """(count, dim) unit vectors of the mixture."""
    random = np.random.default_rng(seed)
    vectors_PE = kinds(dim)[random.integers(TOPICS * KINDS, size=count)]
    vectors_PE += NOISE * random.standard_normal((count, dim), dtype=np.float32)
    vectors_PE /= np.sqrt(np.arange(1, dim + 1, dtype=np.float32))
    return unit(vectors_PE)


def unit(vectors_PE: np.ndarray) -> np.ndarray:
    """The vectors at unit length."""
    return vectors_PE / np.linalg.norm(vectors_PE, axis=1, keepdims=True)
