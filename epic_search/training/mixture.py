"""Which source each step draws from, and which rows: a pure function of the seed and the step.

So a resumed run sees the same batches as one that was never stopped, without saving a position.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from epic_search.errors import UserError
from epic_search.training.labels import LabelSource
from epic_search.training.pairs import Pair, PairSource, TrainBatch, bare, load_pairs
from epic_search.training.recipe import Data
from epic_search.training.recipe_files import expand

Source = PairSource | LabelSource

# Streams of random numbers that must not depend on each other.
_SCHEDULE, _ROWS, _BATCH, _HELDOUT = range(4)


class Mixture:
    """The batches of a run. `heldout` are pairs that no batch contains; `planned` are the steps of each source.

    A source with fewer pairs than a batch takes is left out: it is planned for no step.
    """

    def __init__(self, data: Data, *, batch_size: int, steps: int, seed: int) -> None:
        self._seed, self._batch_size = seed, batch_size
        pairs, weights = _pairs_by_name(data)
        self.heldout = _hold_out(pairs, data.heldout, seed=seed)
        self.sources: list[Source] = [
            PairSource(
                name,
                rows,
                weight=weights[name],
                negatives=data.negatives_per_query,
                instruction_dropout=data.instruction_dropout,
            )
            for name, rows in pairs.items()
            if len(rows) >= batch_size
        ]
        left_out = {name: len(rows) for name, rows in pairs.items() if len(rows) < batch_size}
        self.sources += [
            LabelSource(path, labels, weight=labels.weight) for labels in data.labels for path in expand(labels.files)
        ]
        if not self.sources:
            sizes = ", ".join(f"{name} ({count} pairs)" for name, count in left_out.items())
            raise UserError(f"no source has as many as batch_size = {batch_size} pairs; lower it or add data ({sizes})")
        shares = np.array([source.weight * len(source) ** data.temperature for source in self.sources])
        self.shares = shares / shares.sum()
        self._schedule = np.random.default_rng([seed, _SCHEDULE]).choice(len(self.sources), size=steps, p=self.shares)
        self._turns = _running_counts(self._schedule.tolist())
        drawn = Counter(self.sources[which].name for which in self._schedule.tolist())
        self.planned = {name: drawn[name] for name in (*(source.name for source in self.sources), *left_out)}

    def __len__(self) -> int:
        """The steps of the run."""
        return len(self._schedule)

    def batch(self, step: int) -> TrainBatch:
        """The texts of a step (counted from 0)."""
        which = int(self._schedule[step])
        source = self.sources[which]
        rng = np.random.default_rng([self._seed, _BATCH, step])
        if isinstance(source, LabelSource):
            return source.batch(self._batch_size, rng)
        return source.batch(self._rows(which, int(self._turns[step]), len(source)), rng)

    def _rows(self, which: int, turn: int, size: int) -> np.ndarray:
        """Row numbers for a source's nth batch: epochs of fresh permutations, whole batches only."""
        epoch, place = divmod(turn, size // self._batch_size)
        order = np.random.default_rng([self._seed, _ROWS, which, epoch]).permutation(size)
        return order[place * self._batch_size : (place + 1) * self._batch_size]


def _pairs_by_name(data: Data) -> tuple[dict[str, list[Pair]], dict[str, float]]:
    pairs: dict[str, list[Pair]] = {}
    weights: dict[str, float] = {}
    for origin in data.pairs:
        for name, rows in load_pairs(origin).items():
            pairs.setdefault(name, []).extend(rows)
            weights[name] = origin.weight
    return pairs, weights


def _hold_out(pairs: dict[str, list[Pair]], count: int, *, seed: int) -> list[Pair]:
    """Take `count` pairs out of the sources, evenly over all rows, and every pair that shares a text with them."""
    total = sum(map(len, pairs.values()))
    if count == 0 or total == 0:
        return []
    if count > total // 2:
        raise UserError(f"heldout = {count} is more than half of the {total} pairs; lower it")
    taken = set(np.random.default_rng([seed, _HELDOUT]).choice(total, size=count, replace=False).tolist())
    rows = [row for source in pairs.values() for row in source]
    held = [row for i, row in enumerate(rows) if i in taken]
    texts = {bare(text) for row in held for text in (row.query, row.positive)}
    for name, source in pairs.items():
        pairs[name] = [row for row in source if texts.isdisjoint((bare(row.query), bare(row.positive)))]
    return held


def _running_counts(schedule: Sequence[int]) -> np.ndarray:
    """How often each entry's value occurred before it."""
    seen: dict[int, int] = {}
    counts = np.empty(len(schedule), dtype=np.int64)
    for i, value in enumerate(schedule):
        counts[i] = seen.get(value, 0)
        seen[value] = counts[i] + 1
    return counts
