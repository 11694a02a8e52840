"""Two rankings made one, the same in every build of a corpus: reciprocal rank fusion whose equal scores share a place.

Qdrant can fuse by itself, but it numbers the points of a ranking as they come, and equal scores come in an order that
changes with the order of writing, with the segments, and from one opening of the same files to the next. So a store
asks its engine for both rankings without their payloads, fuses them here, and asks for the payloads of the best.

Imports nothing but the standard library: the process of the embedded engine runs this file, too.
"""

from collections.abc import Hashable, Sequence
from itertools import pairwise
from math import isclose
from typing import Any, TypeVar

Id = TypeVar("Id", bound=Hashable)

REACH = 2  # times the depth is asked for, so that the equals of the last place are mostly known, too
RELATIVE, ABSOLUTE = 1e-5, 1e-6  # scores nearer than so are equal: another build, or engine, rounds otherwise


def fuse(
    rankings: Sequence[Sequence[tuple[Id, float]]], *, depth: int, k: int, weights: Sequence[float]
) -> list[tuple[Id, float]]:
    """All points of the rankings with their fused scores (see Fusion), best first, equal ones in the order of ids.

    A ranking is ids and scores, best first: of REACH * `depth` points, or fewer, which are all that there are.
    """
    scores: dict[Id, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        of_points = places([score for _, score in ranking], depth=depth)
        for (id, _), (first, last) in zip(ranking, of_points, strict=False):
            scores[id] = scores.get(id, 0.0) + 1 / ((first + last) / 2 / weight + k - 1)
    ordered: list[Any] = sorted(scores.items(), key=lambda one: (-one[1], one[0]))
    return ordered


def places(scores: Sequence[float], *, depth: int) -> list[tuple[int, int]]:
    """For each score of a ranking the first and the last place, from 1, that it shares with its equals.

    Down to those that begin within `depth`. Of REACH * `depth` scores the last and its equals have no place: some of
    these may have been left out, and which, is the engine's whim.
    """
    starts = [0, *(n for n, (one, after) in enumerate(pairwise(scores), 1) if not _equal(one, after))]
    if len(scores) < REACH * depth:
        starts.append(len(scores))
    return [(start + 1, end) for start, end in pairwise(starts) if start < depth for _ in range(start, end)]


def _equal(one: float, other: float) -> bool:
    return isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
