"""What do demonstrations that name classes bring, read in closed form? On training labels, not on evaluation sets.

    python benchmarks/emphasis.py --data ../shared/data/train_labels
    python benchmarks/emphasis.py --data ../shared/data/train_labels --without certain --without span --without pairs
    python benchmarks/emphasis.py --data ../shared/data/train_labels --labels 40 --all-names

For each task (a view of a file whose labels are words) up to 700 texts of its 12 commonest labels; K of them with the
names of their labels are demonstrations (`encoder/emphasis.py`), and with --all-names the names of all others besides.
Points times 100 that vectors gain over those without demonstrations: accuracy of the nearest of the classes' means, of
8 texts each (5 draws), and V-measure of k-means (2 runs). Shuffled: each text with another one's label; wrong task:
those of another task. --without leaves a part of the formula out, each in turn. This is where the constants of
`emphasis.py` come from.
"""

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from closed_form import cluster

from epic_search.encoder.emphasis import Emphasis
from epic_search.training.teachers import Teacher, find_teacher

VIEWS = {
    "aws": ["service", "verb"],
    "climate": ["article", "kind"],
    "debian": ["ecosystem", "section"],
    "fairytaleqa": ["attribute"],
    "foldoc": ["category", "main_category"],
    "medquad_answers": ["qtype"],
    "medquad_questions": ["qtype"],
    "nl2bash": ["verb"],
    "py_docstring": ["kind"],
    "reuters": ["main_place", "main_topic"],
    "sql": ["database"],
    "stackexchange": ["question_word"],
    "tech_docs": ["documentation", "kind"],
    "tldr_examples": ["platform", "verb"],
    "tldr_pages": ["platform"],
    "tweets": ["irony"],
    "wordnet": ["lexical_file", "part_of_speech"],
    "wordnet_examples": ["lexical_file", "part_of_speech"],
}
TEXTS, LEAST = 700, 24  # of a task, and of a label
READ = 1500  # texts of a file
CHARACTERS = 250  # of a text
FEW = 8  # texts that a class's mean is of
FAR = 7  # how many tasks further the wrong one is


@dataclass(frozen=True)
class Task:
    """Unit-length vectors of texts, (V, E), their labels, and the vector of each label's name."""

    vectors_VE: np.ndarray
    labels_V: np.ndarray
    name_by_label: dict[str, np.ndarray]

    def score(self, vectors_VE: np.ndarray) -> np.ndarray:
        """(2,) accuracy and V-measure of these vectors in place of its own, times 100."""
        return np.array([100 * nearest_mean(vectors_VE, self.labels_V), cluster(vectors_VE, self.labels_V)])

    def demonstrations(self, k: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(K, E) texts and (K, E) names of their labels, the labels in turn, and (C, E) names of the other labels."""
        random = np.random.default_rng(seed)
        order = random.permutation(sorted(self.name_by_label))
        chosen = [order[i % len(order)] for i in range(k)]
        texts = [random.choice(np.flatnonzero(self.labels_V == label)) for label in chosen]
        others_CE = [self.name_by_label[label] for label in order[k:]]
        return (
            self.vectors_VE[texts],
            np.stack([self.name_by_label[label] for label in chosen]),
            np.reshape(others_CE, (-1, self.vectors_VE.shape[1])),
        )


def main(
    data: Annotated[Path, typer.Option(help="Folder with labelled texts, *.jsonl.gz.")],
    model: Annotated[str, typer.Option(help="A sentence-transformers model.")] = "all-minilm-l6-v2",
    pairs: Annotated[list[int], typer.Option(help="How many demonstrations; may be given again.")] = [4, 8],  # noqa: B006
    without: Annotated[list[str] | None, typer.Option(help="Leave out: span, pairs or certain; again.")] = None,
    labels: Annotated[int, typer.Option(help="Take so many labels of a task, the commonest.")] = 12,
    all_names: Annotated[bool, typer.Option("--all-names", help="Also with the names of all other labels.")] = False,
    seeds: int = 2,
) -> None:
    """Print a table of gains."""
    teacher = find_teacher(f"st:{model}")
    tasks = [
        task for name, views in VIEWS.items() for task in read(data / f"{name}.jsonl.gz", views, teacher, most=labels)
    ]
    before = [task.score(task.vectors_VE) for task in tasks]
    print(f"{len(tasks)} tasks; accuracy, V-measure and the mean of both over those without demonstrations\n")
    print("| demonstrations | true | shuffled | wrong task |\n|---|---|---|---|")
    for left_out in [None, *(without or [])]:
        strengths: dict[str, Any] = {} if left_out is None else {left_out: 0.0}
        for k, told in product(pairs, [False, True] if all_names else [False]):
            cells = []
            for control in ("true", "shuffled", "wrong task"):
                gains = []
                for number, task in enumerate(tasks):
                    shown = tasks[(number + FAR) % len(tasks)] if control == "wrong task" else task
                    for seed in range(seeds):
                        texts_KE, names_KE, others_CE = shown.demonstrations(k, seed=seed)
                        if control == "shuffled":
                            names_KE = np.roll(names_KE, 1, axis=0)
                        change = Emphasis(texts_KE, names_KE, others_CE if told else None, **strengths)
                        gains.append(task.score(change(task.vectors_VE)) - before[number])
                both = np.mean(gains, axis=0)
                cells.append(f"{both[0]:+.2f}, {both[1]:+.2f}: **{both.mean():+.2f}**")
            row = f"{k}{' and all names' if told else ''}{f', without {left_out}' if left_out else ''}"
            print(f"| {row} | {' | '.join(cells)} |", flush=True)


def read(path: Path, views: list[str], teacher: Teacher, *, most: int) -> list[Task]:
    """The tasks of a file; a label that is one of several of its text is none."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:READ]]
    vectors_VE = teacher.encode_passages([row["text"][:CHARACTERS] for row in rows])
    tasks = []
    for view in views:
        values = [row["labels"].get(view, "") for row in rows]
        labels = np.array(
            [value if isinstance(value, str) else value[0] if len(value) == 1 else "" for value in values]
        )
        counts = Counter(label for label in labels.tolist() if label)
        kept = [label for label, count in counts.most_common(most) if count >= LEAST]
        mine = np.flatnonzero(np.isin(labels, kept))[:TEXTS]
        names_CE = teacher.encode_passages([label.replace("_", " ").replace("-", " ") for label in kept])
        tasks.append(Task(vectors_VE[mine], labels[mine], dict(zip(kept, names_CE, strict=True))))
    return tasks


def nearest_mean(vectors_VE: np.ndarray, labels_V: np.ndarray) -> float:
    """Accuracy of the nearest of the means of FEW texts of each label, on the other texts; mean of five draws."""
    labels = np.unique(labels_V)
    found = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        few = [random.permutation(np.flatnonzero(labels_V == label))[:FEW] for label in labels]
        means_CE = np.stack([vectors_VE[some].mean(axis=0) for some in few])
        rest = np.setdiff1d(np.arange(len(labels_V)), np.concatenate(few))
        likeness_VC = vectors_VE[rest] @ means_CE.T - (means_CE**2).sum(axis=1) / 2
        found.append((labels[likeness_VC.argmax(axis=1)] == labels_V[rest]).mean())
    return float(np.mean(found))


if __name__ == "__main__":
    typer.run(main)
