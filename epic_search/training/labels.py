"""Batches from labelled texts with several views: the same texts, related in conflicting ways.

A query's positive shares its label under the query's view; everything known to differ there is a negative, above all
texts that agree with the query under another view of the batch. Without an instruction only demonstrations tell which
relation is meant, so this is where a model learns to read them. Class examples rather than label names as positives:
NV-Embed (arXiv 2405.17428).
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from epic_search.errors import UserError
from epic_search.training.pairs import TrainBatch, read_jsonl
from epic_search.training.recipe import LabelData

INSTRUCTION = "Retrieve a text with the same {view} as the given one"
MIN_TEXTS = 100  # a view with fewer texts repeats itself within a few batches


class LabelSource:
    """One file of labelled texts."""

    def __init__(self, path: Path, data: LabelData, *, weight: float) -> None:
        self.name = f"labels/{path.name.removesuffix('.gz').removesuffix('.jsonl')}"
        self.weight = weight
        self._data = data
        self._texts: list[str] = []
        self._labels: list[dict[str, frozenset[str]]] = []
        members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, row in read_jsonl(path):
            sets = _label_sets(row, f"{path}, line {number}")
            for view, values in sets.items():
                for value in sorted(values):
                    members[view][value].append(len(self._texts))
            self._texts.append(row["text"])
            self._labels.append(sets)
        self._members = {
            view: self._useful(by_label) for view, by_label in members.items() if view not in data.exclude_views
        }
        self._views = sorted(view for view, (_, count) in self._members.items() if count >= MIN_TEXTS)
        if not self._views:
            raise UserError(f"{path} has no view with two labels and {MIN_TEXTS} texts left")

    def __len__(self) -> int:
        return len(self._texts)

    @staticmethod
    def _useful(by_label: dict[str, list[int]]) -> tuple[dict[str, np.ndarray], int]:
        """Labels with at least two texts, if there are two such labels, and how many texts they hold."""
        kept = {label: np.array(texts) for label, texts in by_label.items() if len(texts) >= 2}
        return kept, sum(map(len, kept.values())) if len(kept) >= 2 else 0

    def batch(self, Q: int, rng: np.random.Generator) -> TrainBatch:
        """A batch of Q queries drawn by `rng`."""
        views = list(rng.choice(self._views, size=min(self._data.views_per_batch, len(self._views)), replace=False))
        group_Q = np.sort(rng.integers(len(views), size=Q))
        shown = rng.random(len(views)) >= self._data.instruction_dropout
        drawn = [self._triple(views, int(group), rng) for group in group_Q]
        passage_ids = [positive for _, positive, _ in drawn] + [
            negative for _, _, negative in drawn if negative is not None
        ]
        allowed_QP = np.zeros((Q, len(passage_ids)), dtype=bool)
        for i, (query, positive, _) in enumerate(drawn):
            view = views[group_Q[i]]
            for j, passage in enumerate(passage_ids):
                theirs = self._labels[passage].get(view)
                allowed_QP[i, j] = (
                    theirs is not None and passage != positive and not (theirs & self._labels[query][view])
                )
            allowed_QP[i, i] = True
        return TrainBatch(
            source=self.name,
            queries=[self._texts[query] for query, _, _ in drawn],
            tasks=[INSTRUCTION.format(view=views[g].replace("_", " ")) if shown[g] else None for g in group_Q],
            group_Q=group_Q,
            passages=[self._texts[i] for i in passage_ids],
            allowed_QP=allowed_QP,
            untold_Q=~shown[group_Q],
            pairs=False,
        )

    def _triple(self, views: list[str], group: int, rng: np.random.Generator) -> tuple[int, int, int | None]:
        """Query, positive (same label in the view) and, if found, a negative that agrees in another view only."""
        view = views[group]
        by_label, _ = self._members[view]
        # Square-root sampling: a view's commonest label must not fill the batch.
        names = list(by_label)
        sizes = np.sqrt([len(by_label[name]) for name in names])
        label = names[rng.choice(len(names), p=sizes / sizes.sum())]
        query, positive = (int(i) for i in rng.choice(by_label[label], size=2, replace=False))
        mine = self._labels[query]
        for other in rng.permutation([v for v in views if v != view and v in mine]):
            for name in sorted(mine[other]):
                candidates = self._members[other][0].get(name, np.empty(0, dtype=np.int64))
                for candidate in rng.permutation(candidates)[:8]:
                    theirs = self._labels[candidate].get(view)
                    if theirs is not None and not theirs & mine[view]:
                        return query, positive, int(candidate)
        return query, positive, None


def _label_sets(row: dict, place: str) -> dict[str, frozenset[str]]:
    labels = row.get("labels")
    if isinstance(row.get("text"), str) and isinstance(labels, dict):
        lists = {view: [value] if isinstance(value, str) else value for view, value in labels.items()}
        if all(isinstance(values, list) and all(isinstance(v, str) for v in values) for values in lists.values()):
            return {view: frozenset(values) for view, values in lists.items()}
    raise UserError(f"{place}: expected {{text, labels: {{view: label or [labels]}}}}, all of them texts")
