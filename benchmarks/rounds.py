"""What the benchmarks of the encoder share: texts of given lengths, and set-ups that take turns against the clock."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from epic_search import stdlib
from epic_search.evaluation.job import machine

Seconds = dict[str, list[float]]


def take_turns(
    setups: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Seconds:
    """Seconds of each call, after one that is not counted; in every round each set-up has one turn.

    So what else the machine does meanwhile slows all of them alike.
    """
    found: Seconds = {name: [] for name in setups}
    for number in range(rounds + 1):
        for name, run in setups.items():
            start = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                found[name].append(clock() - start)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    p10, p90 = np.percentile(values, [10, 90])
    return {"median": statistics.median(values), "p10": float(p10), "p90": float(p90)}


def texts_of(lengths: Sequence[int], tokenizer: Tokenizer, *, seed: int) -> list[str]:
    """A text of about each number of tokens, from the documentation of Python's standard library; no two alike."""
    documents = [f"{document['title']}\n{document['text']}" for document in stdlib.documents()]
    order = np.random.default_rng(seed).permutation(len(documents))
    ids = [id for i in order for id in tokenizer.encode(documents[i], add_special_tokens=False).ids]
    starts = np.cumsum([0, *lengths])
    if starts[-1] > len(ids):
        raise SystemExit(f"the documentation has {len(ids)} tokens, and {starts[-1]} are needed; lower --tokens")
    return [tokenizer.decode(ids[start : start + length]) for start, length in zip(starts, lengths, strict=False)]


def facts(**settings: Any) -> dict[str, Any]:
    """Where and with what a result was made."""
    packages = ("torch", "transformers", "sentence-transformers")
    return {"machine": machine(), "threads": torch.get_num_threads()} | {
        "versions": {package: version(package) for package in packages},
        **settings,
    }
