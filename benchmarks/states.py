"""What do a decoder's states know of a text that its Contextual vector does not?

    python benchmarks/states.py --data ../shared/data/train --teacher st:all-mpnet-base-v2 --layers 6 --layers 30

A ridge regression from the states of an untrained decoder, standardised as `encoder/residual.py` does, and from the
Contextual vector to a teacher's vectors, over texts of all training sources. The measure is the correlation between the
cosines of held-out texts and the teacher's, over all pairs of them. Where states add nothing to the Contextual vector
here, a residual will have a hard time to get something out of them. Prints the median and range over five splits.
"""

import gzip
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.residual import Residual
from epic_search.training.objective import mixed_precision
from epic_search.training.teachers import find_teacher

CHARACTERS = 400  # of a text
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # times the number of texts, for unit-length rows
SPLITS = 5
TEST = 0.25


def main(
    data: Annotated[Path, typer.Option(help="Folder with training pairs, *.jsonl.gz.")],
    teacher: str = "st:all-mpnet-base-v2",
    backbone: str = "smollm2-135m-instruct",
    contextual: str = "all-minilm-l6-v2",
    layers: Annotated[list[int] | None, typer.Option(help="Layers of the decoder, each in turn. Default: 6.")] = None,
    texts: Annotated[int, typer.Option(help="Texts of each source.")] = 100,
) -> None:
    """Encode, regress, print a table."""
    shown = [text for file in sorted(data.glob("*.jsonl.gz")) for text in positives(file, texts)]
    teacher_NT = find_teacher(teacher, device="cpu").encode_passages(shown)
    print(f"{len(shown)} texts, correlation with the cosines of {teacher}: median (range) of {SPLITS} splits\n")
    print("| states | alone | with the Contextual vector |\n|---|---|---|")
    context_NC = np.empty((len(shown), 0), dtype=np.float32)
    rows = []
    for depth in layers or [6]:
        for pooling in ("concat", "last", "mean"):
            config = {
                "name": "untrained",
                "backbone": backbone,
                "layers": depth,
                "pooling": pooling,
                "contextual": {"encoder": contextual, "gain": 4.0},
            }
            encoder = Encoder.create(EncoderConfig.model_validate(config), dtype=torch.bfloat16)
            states_NS, context_NC = states_of(encoder, shown)
            both = np.concatenate([context_NC, states_NS], axis=1)
            name = {
                "concat": "of the Contextual and the EOS token",
                "last": "of the EOS token",
                "mean": "mean of the text's",
            }
            rows.append(
                (f"{depth} layers, {name[pooling]}", agreement(states_NS, teacher_NT), agreement(both, teacher_NT))
            )
    print(f"| none | | {agreement(context_NC, teacher_NT)} |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def positives(file: Path, count: int) -> list[str]:
    """The beginnings of a source's first passages."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["positive"][:CHARACTERS] for line, _ in zip(lines, range(count), strict=False)]


@torch.inference_mode()
def states_of(encoder: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N, S) standardised states and (N, C) Contextual vectors."""
    context_NC = encoder.context(texts)
    assert context_NC is not None
    rows = [encoder.template.passage.row(ids) for ids in encoder.token_ids(texts)]
    none = torch.empty(0, encoder.dim)
    parts = []
    for first in range(0, len(rows), 32):
        some = slice(first, first + 32)
        with mixed_precision(encoder):
            parts.append(encoder.model.pooled(rows[some], context_BC=context_NC[some], soft_SE=none))
    states_NS = torch.cat(parts)
    residual = Residual(states_width=states_NS.shape[1], context_width=context_NC.shape[1])
    residual.calibrate(states_NS)
    return residual.standardised(states_NS).numpy(), context_NC.float().numpy()


def agreement(features_NF: np.ndarray, teacher_NT: np.ndarray) -> str:
    """How well a linear map of the features has the teacher's cosines: median and range over splits."""
    found = sorted(of_split(features_NF, teacher_NT, seed=seed) for seed in range(SPLITS))
    return f"{found[SPLITS // 2]:.3f} ({found[0]:.3f} to {found[-1]:.3f})"


def of_split(features_NF: np.ndarray, teacher_NT: np.ndarray, *, seed: int) -> float:
    """Correlation over pairs of held-out texts, with the penalty that is best for it."""
    order_N = np.random.default_rng(seed).permutation(len(features_NF))
    test, train = np.split(order_N, [int(TEST * len(order_N))])
    known_FF = features_NF[train].T @ features_NF[train]
    wanted_FT = features_NF[train].T @ teacher_NT[train]
    pairs = np.triu_indices(len(test), 1)
    theirs = (teacher_NT[test] @ teacher_NT[test].T)[pairs]
    best = -1.0
    for penalty in PENALTIES:
        ridge_FF = penalty * len(train) / len(known_FF) * np.eye(len(known_FF), dtype=np.float32)
        mapped_NT = features_NF[test] @ np.linalg.solve(known_FF + ridge_FF, wanted_FT)
        mapped_NT /= np.linalg.norm(mapped_NT, axis=1, keepdims=True)
        best = max(best, float(np.corrcoef((mapped_NT @ mapped_NT.T)[pairs], theirs)[0, 1]))
    return best


if __name__ == "__main__":
    typer.run(main)
