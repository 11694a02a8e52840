"""What could demonstrations bring at most? The vectors of a frozen encoder, changed in closed form by k pairs.

    python benchmarks/closed_form.py --model all-mpnet-base-v2 --set trec_question --set search_snippets --pairs 8

A model that reads demonstrations has to turn k pairs into a change of its vectors. This asks what such pairs hold,
without any training: the directions in which the two texts of a pair differ do not matter for the task, so a share
`--remove` of every vector's part in them is taken away (nuisance attribute projection; Solomonoff et al. 2005), and
vectors may be moved from the pairs' mean (`--centre`) or towards the pairs' own means, nearest first (`--attract`).
Classification (accuracy of a logistic regression on 8 texts a class, 5 draws) and clustering (V-measure of mini-batch
k-means, 3 draws), times 100, with true pairs of one class, with the same pairs shuffled, and without any; means over
--seeds draws of pairs. Data: EPIC_SEARCH_DATA (default ../shared/data).
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from mixture import unit

from epic_search.training.teachers import Teacher, find_teacher

DATA = Path(os.environ.get("EPIC_SEARCH_DATA", "../shared/data")) / "eval"
TEMPERATURE = 0.2  # of the attraction


def main(
    sets: Annotated[list[str], typer.Option("--set", help="Folders of the data, for classification or clustering.")],
    model: Annotated[str, typer.Option(help="A sentence-transformers model.")] = "all-minilm-l6-v2",
    pairs: Annotated[list[int], typer.Option(help="How many pairs; may be given again.")] = [4, 8],  # noqa: B006
    remove: float = 0.5,
    centre: float = 0.0,
    attract: float = 0.0,
    seeds: int = 3,
    limit: Annotated[int, typer.Option(help="Test texts of a set, drawn with a fixed seed.")] = 1500,
    out: Path | None = None,
) -> None:
    """Measure what k pairs change."""
    teacher = find_teacher(f"st:{model}")
    settings = {"remove": remove, "centre": centre, "attract": attract}
    rows: list[dict[str, Any]] = []
    for name in sets:
        data = load(name, teacher, limit)
        found = {"none": data.score(lambda vectors_NE: vectors_NE)}
        for k in pairs:
            for control in ("true", "shuffled"):
                scores = []
                for seed in range(seeds):
                    shown = draw(data.train_NE, data.train_labels, k, seed, shuffled=control == "shuffled")
                    scores.append(data.score(partial(changed, shown=shown, **settings)))
                found[f"{control} {k}"] = float(np.mean(scores))
        print(f"{name:>22}: " + ", ".join(f"{condition} {value:.1f}" for condition, value in found.items()), flush=True)
        rows.append({"set": name, "kind": "clustering" if data.clustering else "classification", "scores": found})
    for condition in rows[0]["scores"]:
        means = {
            kind: np.mean([row["scores"][condition] for row in rows if row["kind"] == kind])
            for kind in sorted({row["kind"] for row in rows})
        }
        said = ", ".join(f"{kind} {mean:.2f}" for kind, mean in means.items())
        print(f"{condition:>12}: {said}, mean {np.mean(list(means.values())):.2f}")
    if out is not None:
        out.write_text(
            json.dumps({"model": model, **settings, "seeds": seeds, "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )


@dataclass(frozen=True)
class LabelledTexts:
    """Vectors of test texts, and of others, which pairs (and a classifier's few examples) come from."""

    test_NE: np.ndarray
    test_labels: np.ndarray
    train_NE: np.ndarray
    train_labels: np.ndarray
    clustering: bool

    def score(self, change: Callable[[np.ndarray], np.ndarray]) -> float:
        """The set's measure of changed vectors."""
        if self.clustering:
            return cluster(change(self.test_NE), self.test_labels)
        return classify(change(self.train_NE), self.train_labels, change(self.test_NE), self.test_labels)


def load(name: str, teacher: Teacher, limit: int) -> LabelledTexts:
    """A set of the shared data; one without training texts is clustered, and pairs come from what is left out."""
    test = read(DATA / name / "test.jsonl", limit)
    clustering = not (DATA / name / "train.jsonl").is_file()
    train = test[-400:] if clustering else read(DATA / name / "train.jsonl", 3000)
    test = test[:-400] if clustering else test
    parts = [(teacher.encode_passages([t for t, _ in part]), np.array([y for _, y in part])) for part in (test, train)]
    return LabelledTexts(*parts[0], *parts[1], clustering=clustering)


def changed(
    vectors_NE: np.ndarray, *, shown: tuple[np.ndarray, np.ndarray], remove: float, centre: float, attract: float
) -> np.ndarray:
    """(N, E) unit-length vectors after K pairs have been read; `shown`: (K, E) of their first and second texts."""
    first_KE, second_KE = shown
    means_KE = (first_KE + second_KE) / 2
    nuisance_RE = span(first_KE - second_KE)

    def without(rows_NE: np.ndarray) -> np.ndarray:
        return rows_NE - remove * (rows_NE @ nuisance_RE.T) @ nuisance_RE

    moved_NE = unit(without(vectors_NE - centre * means_KE.mean(axis=0)))
    if attract:
        anchors_KE = unit(without(means_KE - means_KE.mean(axis=0)))
        weights_NK = np.exp(moved_NE @ anchors_KE.T / TEMPERATURE)
        moved_NE += attract * (weights_NK / weights_NK.sum(axis=1, keepdims=True)) @ anchors_KE
    return unit(moved_NE)


def draw(
    vectors_NE: np.ndarray, labels: np.ndarray, k: int, seed: int, *, shuffled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(K, E) twice: the two texts of each pair, of one class, the classes in turn; shuffled: never of one pair."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(sorted(set(labels.tolist())))
    chosen = [rng.choice(np.flatnonzero(labels == classes[i % len(classes)]), size=2, replace=False) for i in range(k)]
    first, second = np.array(chosen).T
    return vectors_NE[first], vectors_NE[np.roll(second, 1) if shuffled else second]


def classify(train_NE: np.ndarray, labels_N: np.ndarray, test_ME: np.ndarray, labels_M: np.ndarray) -> float:
    """Accuracy of a logistic regression on 8 texts a class, mean of 5 draws, times 100."""
    from sklearn.linear_model import LogisticRegression

    scores = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        few = np.concatenate(
            [rng.permutation(np.flatnonzero(labels_N == label))[:8] for label in sorted(set(labels_N))]
        )
        scores.append(LogisticRegression(max_iter=100).fit(train_NE[few], labels_N[few]).score(test_ME, labels_M))
    return 100 * float(np.mean(scores))


def cluster(vectors_NE: np.ndarray, labels_N: np.ndarray) -> float:
    """V-measure of mini-batch k-means with as many clusters as classes, mean of 3 draws, times 100."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    count = len(set(labels_N))
    runs = [MiniBatchKMeans(count, n_init=2, batch_size=512, random_state=seed) for seed in range(3)]
    return 100 * float(np.mean([v_measure_score(labels_N, run.fit_predict(vectors_NE)) for run in runs]))


def span(rows_KE: np.ndarray) -> np.ndarray:
    """(R, E) orthonormal rows that span the given ones."""
    _, strengths, directions_RE = np.linalg.svd(rows_KE, full_matrices=False)
    return directions_RE[strengths > 1e-4]


def read(path: Path, limit: int) -> list[tuple[str, str]]:
    """(text, label) of at most `limit` lines, drawn with a fixed seed."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(rows[i]["text"], str(rows[i]["label"])) for i in np.random.default_rng(0).permutation(len(rows))[:limit]]


if __name__ == "__main__":
    typer.run(main)
