"""Does the encoder read its demonstrations? Same-class retrieval under true, shuffled, random and no demonstrations.

    python benchmarks/demonstrations.py --model epic-mini --set trec_question --set stackoverflow_titles

`epic-search eval` asks this of tasks as they are; here the question is put as sharply as it can be. Passages are texts
of known class, encoded once and without a prompt. Queries are other texts of the same set; a demonstration is a pair of
texts of one class, the classes in turn. Two measures: precision@10 (share of the ten nearest passages that have the
query's class) and the accuracy of the nearest class mean with 8 passages a class. Each condition with and without the
instruction, since without it nothing else tells the relation; mean and range over --seeds draws of passages, queries
and demonstrations. Data: EPIC_SEARCH_DATA (default ../shared/data).
"""

import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from epic_search.encoder import Encoder
from epic_search.evaluation.demonstrations import Pool, class_pairs, make_prompt
from epic_search.evaluation.kinds import CONTROLS

DATA = Path(os.environ.get("EPIC_SEARCH_DATA", "../shared/data"))
# Set: its instruction, the files that passages and demonstrations come from, and the file of the queries.
SETS = {
    "trec_question": ("Retrieve a question that asks for the same kind of answer", "train.jsonl", "test.jsonl"),
    "stackoverflow_titles": ("Retrieve a question about the same technology", "test.jsonl", "test.jsonl"),
    "banking77": ("Retrieve a customer's message with the same intent", "train.jsonl", "test.jsonl"),
    "tweet_emotion": ("Retrieve a tweet with the same emotion", "train.jsonl", "test.jsonl"),
    "sst2": ("Retrieve a film review with the same sentiment", "train.jsonl", "test.jsonl"),
}


def main(
    sets: Annotated[list[str], typer.Option("--set")],
    model: str = "epic-mini",
    k: Annotated[int, typer.Option(help="Demonstrations in a prompt.")] = 6,
    seeds: int = 3,
    passages: Annotated[int, typer.Option(help="Passages in the pool.")] = 1000,
    queries: int = 500,
    kind: Annotated[str | None, typer.Option(help="soft or text. Default: as the encoder was trained.")] = None,
    dtype: str = "auto",
    out: Path | None = None,
) -> None:
    """Measure what demonstrations change."""
    encoder = Encoder.load(model, dtype=dtype)  # type: ignore[arg-type]
    soft = (kind or encoder.config.demonstrations) == "soft"
    controls = [control for control in CONTROLS if soft or control != "random"]  # texts have no vectors
    rows = []
    for name in sets:
        task, pool_file, query_file = SETS[name]
        pool = read(DATA / "eval" / name / pool_file)
        asked = read(DATA / "eval" / name / query_file)
        scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            pool_rows = rng.permutation(len(pool))
            query_rows = rng.permutation(len(asked))[:queries]
            if pool_file == query_file:
                pool_rows = np.setdiff1d(pool_rows, query_rows)[rng.permutation(len(pool) - len(query_rows))]
            held, shown = [pool[i] for i in pool_rows[:passages]], [pool[i] for i in pool_rows[passages:]]
            passages_PE = encoder.encode_passages([text for text, _ in held])
            texts, labels = zip(*shown, strict=True)
            shown_pairs = Pool(tuple(class_pairs(texts, labels, classes="examples")), source=name)
            for instruction in (task, None):
                for condition in ("none", "true", *controls):
                    prompt = make_prompt(
                        encoder,
                        instruction=instruction,
                        pool=shown_pairs,
                        k=0 if condition == "none" else k,
                        seed=seed,
                        control=condition if condition in controls else None,
                        kind=kind,  # type: ignore[arg-type]
                    )
                    queries_QE = encoder.encode_queries([asked[i][0] for i in query_rows], prompt=prompt)
                    result = measure(
                        queries_QE, [asked[i][1] for i in query_rows], passages_PE, [label for _, label in held]
                    )
                    scores.setdefault(("with" if instruction else "without", condition), []).append(result)
        print(f"{name} (k={k}, {seeds} seeds)")
        for (instruction, condition), values in scores.items():
            precision, accuracy = np.array(values).T
            print(
                f"  {instruction:>7} instruction, {condition:>10}: precision@10 {precision.mean():.4f} "
                f"({precision.min():.4f} to {precision.max():.4f})  class mean {accuracy.mean():.4f} "
                f"({accuracy.min():.4f} to {accuracy.max():.4f})"
            )
            rows.append(
                {
                    "set": name,
                    "model": model,
                    "k": k,
                    "kind": "soft" if soft else "text",
                    "instruction": instruction == "with",
                    "demonstrations": condition,
                    "precision_at_10": precision.tolist(),
                    "class_mean_accuracy": accuracy.tolist(),
                }
            )
    if out is not None:
        out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def measure(
    queries_QE: np.ndarray, query_labels: list[str], passages_PE: np.ndarray, passage_labels: list[str]
) -> tuple[float, float]:
    """Precision@10 and the accuracy of the nearest mean of 8 passages a class."""
    labels_P, labels_Q = np.array(passage_labels), np.array(query_labels)
    nearest_Q10 = np.argsort(-(queries_QE @ passages_PE.T), axis=1)[:, :10]
    precision = (labels_P[nearest_Q10] == labels_Q[:, None]).mean()
    classes = sorted(set(passage_labels))
    means_CE = np.stack([passages_PE[labels_P == label][:8].mean(axis=0) for label in classes])
    means_CE /= np.linalg.norm(means_CE, axis=1, keepdims=True)
    guessed_Q = np.array(classes)[np.argmax(queries_QE @ means_CE.T, axis=1)]
    return float(precision), float((guessed_Q == labels_Q).mean())


def read(path: Path) -> list[tuple[str, str]]:
    """(text, label) of each line."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["text"], str(row["label"])) for row in rows]


if __name__ == "__main__":
    typer.run(main)
