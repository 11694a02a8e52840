"""How sure a score is: bootstrap intervals over items, and the differences of paired scores.

All resamples of a task come from one random stream that depends on nothing but the task's name and its number of items,
and items are put in the order of their ids. So the i-th resample of two encoders asks the same queries, and the
difference of two estimates is the paired difference; tasks are drawn independently of each other.

Legend of array suffixes: R resamples, N items, G groups of items with equal values.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from epic_search.errors import UserError
from epic_search.evaluation.results import Items, Result

RESAMPLES = 1000
SEED = 0
LEVEL = 95.0  # per cent
BLOCK = 100  # resamples worked on at once: at 10,000 items an array of 8 MB

# mteb may round, or take the best of several similarities; a larger gap means that the items are of something else.
TOLERANCE = 0.001

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score (or a difference of scores, or a mean of them) as a fraction, and its bootstrap resamples (R,)."""

    score: float
    resamples_R: Floats | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile interval (low, high); None where items are missing.

        Resamples in which a score is not defined (no positive pair was drawn) are left out.
        """
        if self.resamples_R is None:
            return None
        defined = self.resamples_R[np.isfinite(self.resamples_R)]
        if not len(defined):
            return None
        tail = (100 - LEVEL) / 2
        low, high = np.percentile(defined, [tail, 100 - tail])
        return float(low), float(high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False where there is no interval."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The paired difference: both estimates must be over the same tasks and items (see require_same_items)."""
        if self.resamples_R is None or other.resamples_R is None:
            return Estimate(self.score - other.score)
        return Estimate(self.score - other.score, self.resamples_R - other.resamples_R)


def estimate(results: Sequence[Result]) -> Estimate:
    """The score of one entry on one task: the mean over its seeds, with resamples of the items.

    Without resamples where a result has no items, fewer than two, or items that do not give its score (tasks of several
    subsets), and for clustering: its items are repeated clusterings of the same texts, and to draw from them would say
    nothing of other texts. Small gaps are closed by shifting the resamples to the score.
    """
    score = float(np.mean([result.score for result in results]))
    resamples = [_resampled(result) for result in results]
    if any(resamples_R is None for resamples_R in resamples):
        return Estimate(score)
    return Estimate(score, np.mean([resamples_R for resamples_R in resamples if resamples_R is not None], axis=0))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates: resamples are drawn within each task, and averaged over tasks.

    Without resamples where one of them has none: an interval of the rest would take that one for certain.
    """
    assert estimates, "a mean needs at least one estimate"
    score = float(np.mean([each.score for each in estimates]))
    resamples = [each.resamples_R for each in estimates if each.resamples_R is not None]
    return Estimate(score, np.mean(resamples, axis=0) if len(resamples) == len(estimates) else None)


def require_same_items(results: Sequence[Result]) -> None:
    """Raise UserError unless all results, of one task, are over the same data and the same items."""
    first = results[0]
    for other in results[1:]:
        assert other.task == first.task, (other.task, first.task)
        same = first.dataset_revision == other.dataset_revision
        if first.items and other.items:
            same = same and set(first.items.ids) == set(other.items.ids)
        if not same:
            raise UserError(
                f"{first.path} and {other.path} are over different versions of {first.task} and cannot be compared; "
                "run the older of them again"
            )


@lru_cache(maxsize=4096)  # a table for the terminal and a report are made of the same results
def _resampled(result: Result) -> Floats | None:
    items = result.items
    if items is None or len(items.ids) < 2 or items.form == "runs":
        return None
    point = float(_scores(items, np.ones((1, len(items.ids))))[0])
    if not abs(point - result.score) <= TOLERANCE:
        return None
    order = np.argsort(np.array(items.ids))
    counts_RN = _counts(result.task, len(items.ids))
    ordered = Items(
        metric=items.metric,
        form=items.form,
        ids=tuple(items.ids[i] for i in order),
        values=items.values[order],
        gold=None if items.gold is None else items.gold[order],
    )
    blocks = [_scores(ordered, block_RN) for block_RN in _blocks(counts_RN)]
    return np.concatenate(blocks) + (result.score - point)


@lru_cache(maxsize=64)
def _counts(task: str, n: int) -> NDArray[np.uint8]:
    """How often each of n items is drawn in each resample: (R, N)."""
    rng = np.random.default_rng([SEED, zlib.crc32(task.encode()), n])
    counts_RN = np.empty((RESAMPLES, n), dtype=np.uint8)
    for row_N in counts_RN:
        row_N[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return counts_RN


def _blocks(counts_RN: NDArray[np.uint8]) -> Iterator[Floats]:
    for start in range(0, len(counts_RN), BLOCK):
        yield counts_RN[start : start + BLOCK].astype(np.float64)


def _scores(items: Items, counts_RN: Floats) -> Floats:
    """The score of each resample (R,): sorting once serves them all, which one call a resample would not allow."""
    if items.form == "mean":
        return counts_RN @ items.values / len(items.values)
    assert items.gold is not None, items.form
    if items.form == "spearman":
        return _spearman(items.values, items.gold, counts_RN)
    return _average_precision(items.values, items.gold, counts_RN)


def _spearman(values_N: Floats, gold_N: Floats, counts_RN: Floats) -> Floats:
    """Pearson's correlation of the ranks that items have within each resample."""
    a_RN, b_RN = (_centred_ranks(x_N, counts_RN) for x_N in (values_N, gold_N))
    weighted_RN = counts_RN * a_RN
    cross_R = np.einsum("rn,rn->r", weighted_RN, b_RN)
    a_R = np.einsum("rn,rn->r", weighted_RN, a_RN)
    b_R = np.einsum("rn,rn,rn->r", counts_RN, b_RN, b_RN)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(cross_R / np.sqrt(a_R * b_R))


def _centred_ranks(x_N: Floats, counts_RN: Floats) -> Floats:
    """Ranks less their mean, the mean rank for ties; (R, N)."""
    order, starts, group_N = _groups(x_N)
    counts_RG = np.add.reduceat(counts_RN[:, order], starts, axis=1)
    ranks_RG = np.cumsum(counts_RG, axis=1) - counts_RG / 2 - len(x_N) / 2
    return ranks_RG[:, group_N]


def _average_precision(values_N: Floats, gold_N: Floats, counts_RN: Floats) -> Floats:
    """The sum over thresholds, from the highest value down, of precision times the gain in recall."""
    order, starts, _ = _groups(-values_N)
    sorted_RN = counts_RN[:, order]
    drawn_RG = np.cumsum(np.add.reduceat(sorted_RN, starts, axis=1), axis=1)
    found_RG = np.add.reduceat(sorted_RN * gold_N[order], starts, axis=1)
    right_RG = np.cumsum(found_RG, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_RG = np.where(drawn_RG > 0, right_RG / drawn_RG, 0.0)
        return np.asarray((precision_RG * found_RG).sum(axis=1) / right_RG[:, -1])


def _groups(x_N: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The order of x (N,), where each group of equal values starts in it (G,), and the group of each item (N,)."""
    order = np.argsort(x_N, kind="stable")
    new_N = np.concatenate([[True], np.diff(x_N[order]) > 0])
    group_N = np.empty(len(x_N), dtype=np.intp)
    group_N[order] = np.cumsum(new_N) - 1
    return order, np.flatnonzero(new_N), group_N
