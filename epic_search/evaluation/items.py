"""The score of each query or text of an evaluation: what intervals and paired differences are computed from.

mteb gives them where it has them: for rankings through the hook for a task's own scores, for other kinds with its
predictions.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epic_search.evaluation.kinds import SEARCH_KINDS, Kind
from epic_search.evaluation.splits import subsets, unwrapped

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult

# mteb's names of the main score, and trec_eval's of the same per query.
PER_QUERY = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
MEASURES = ("cosine", "similarity", "dot", "euclidean", "manhattan")


class Recorder:
    """Collects the items of one evaluation of one loaded task."""

    def __init__(self, task: "AbsTask", kind: Kind) -> None:
        self._task = task
        self._kind = kind
        self._queries: dict[str, float] = {}
        if kind in SEARCH_KINDS:
            self._listen()

    def prediction_folder(self, folder: Path) -> Path | None:
        """Where mteb shall write predictions; None for rankings, which would be large and are not needed."""
        return None if self._kind in SEARCH_KINDS else folder

    def items(self, result: "TaskResult", folder: Path) -> dict[str, Any] | None:
        """Items in the form that `epic_search.evaluation.results` reads; None where the task or its metric has none."""
        metric = self._task.metadata.main_score
        match self._kind:
            case "retrieval" | "reranking":
                return _means(metric, self._queries) if self._queries else None
            case "classification":
                # The texts of a cross-validation are in another order in each of its parts.
                several = getattr(self._task, "is_cross_validation", False)
                return _means(metric, self._accuracies(folder)) if metric == "accuracy" and not several else None
            case "sts":
                return self._similarities(folder, metric, "cosine") if metric == "cosine_spearman" else None
            case "pair_classification":
                return self._similarities(folder, metric, _best(result)) if metric == "max_ap" else None
            case "clustering":
                return self._runs(result, metric)

    def _listen(self) -> None:
        """Hear of the scores per query, which mteb hands to `task_specific_scores`."""
        main_score = re.fullmatch(r"(.+)_at_(\d+)", self._task.metadata.main_score)
        if main_score is None or main_score[1] not in PER_QUERY:
            return  # a score that a task computes by itself has none per query
        key = f"{PER_QUERY[main_score[1]]}_{main_score[2]}"
        own = self._task.task_specific_scores  # type: ignore[attr-defined]

        def heard(scores: Mapping[str, Mapping[str, float]], *args: Any, **options: Any) -> dict[str, float]:
            where = _where(options["hf_split"], options["hf_subset"])
            self._queries |= {f"{where}{query}": values[key] for query, values in scores.items() if key in values}
            return own(scores, *args, **options)

        self._task.task_specific_scores = heard  # type: ignore[attr-defined]

    def _accuracies(self, folder: Path) -> dict[str, float]:
        """For each text the share of classifiers that were right about it."""
        items: dict[str, float] = {}
        for where, rows, predictions in self._predictions(folder):
            labels_N = np.asarray(rows[self._task.label_column_name])  # type: ignore[attr-defined]
            right_N = (np.asarray(predictions) == labels_N).mean(axis=0)
            items |= {f"{where}{i}": float(value) for i, value in enumerate(right_N)}
        return items

    def _similarities(self, folder: Path, metric: str, measure: str) -> dict[str, Any]:
        form, column = ("spearman", "score") if self._kind == "sts" else ("average_precision", "label")
        column = getattr(self._task, "label_column_name", column)
        distance = measure in ("manhattan", "euclidean")
        name, sign = (f"{measure}_distances", -1) if distance else (f"{measure}_scores", 1)
        ids: list[str] = []
        values: list[float] = []
        gold: list[float] = []
        for where, rows, predictions in self._predictions(folder):
            ids += [f"{where}{i}" for i in range(len(rows[column]))]
            values += [sign * float(value) for value in predictions[name]]
            gold += map(float, rows[column])
        return {"metric": metric, "form": form, "ids": ids, "values": values, "gold": gold}

    def _runs(self, result: "TaskResult", metric: str) -> dict[str, Any] | None:
        """V-measures of the clusterings, which are of the same drawn texts for every model."""
        values: dict[str, float] = {}
        for split, entries in result.scores.items():
            for entry in entries:
                levels = entry.get("v_measures", {})
                for level, runs in (levels if isinstance(levels, dict) else {"Level 0": levels}).items():
                    where = f"{_where(split, entry['hf_subset'])}{level} "
                    values |= {f"{where}{i}": value for i, value in enumerate(runs)}
        return {**_means(metric, values), "form": "runs"} if values and metric == "v_measure" else None

    def _predictions(self, folder: Path) -> Any:
        """(prefix of ids, rows, predictions) of every split that was evaluated."""
        written = json.loads((folder / self._task.prediction_file_name).read_text(encoding="utf-8"))
        for subset, splits in subsets(self._task):
            for split, predictions in written.get(subset, {}).items():
                yield _where(split, subset), unwrapped(splits[split]), predictions


def _best(result: "TaskResult") -> str:
    """The measure of similarity whose average precision is mteb's `max_ap`."""
    entries = [entry for split in result.scores.values() for entry in split]
    return max(MEASURES, key=lambda name: sum(entry.get(f"{name}_ap", 0.0) for entry in entries))


def _where(split: str, subset: str) -> str:
    """What sets the rows of one split and subset apart from the others'; nothing for the usual ones."""
    return "" if (split, subset) == ("test", "default") else f"{split}/{subset}/"


def _means(metric: str, values: Mapping[str, float]) -> dict[str, Any]:
    return {"metric": metric, "form": "mean", "ids": list(values), "values": list(values.values()), "gold": []}
