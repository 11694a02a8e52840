"""What an evaluation costs: texts, tokens and seconds that went into encoding, apart from everything else."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

SAMPLE = 256  # texts whose tokens are counted; the mean stands for all
LATENCY_QUERIES = 20
WARM_UP_QUERIES = 3


@dataclass
class Meter:
    """Counts of one evaluation. Tokens are those the model reads, prompt and special tokens included."""

    texts: int = 0
    tokens: float = 0.0
    encode_seconds: float = 0.0
    queries: int = 0
    query_tokens: float = 0.0
    some_queries: list[str] = field(default_factory=list)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Adds the time inside to `encode_seconds`."""
        started = time.perf_counter()
        yield
        self.encode_seconds += time.perf_counter() - started

    def count_passages(self, number: int, *, sampled_tokens: Sequence[int]) -> None:
        """Count encoded texts that carried no prompt."""
        self.texts += number
        self.tokens += number * _mean(sampled_tokens)

    def count_queries(self, texts: Sequence[str], *, sampled_tokens: Sequence[int]) -> None:
        """Count encoded texts that carried the prompt, and keep a few for the latency."""
        self.texts += len(texts)
        self.queries += len(texts)
        self.tokens += len(texts) * _mean(sampled_tokens)
        self.query_tokens += len(texts) * _mean(sampled_tokens)
        self.keep_some(texts)

    def keep_some(self, queries: Sequence[str]) -> None:
        """Keep a few queries for the latency."""
        self.some_queries += queries[: WARM_UP_QUERIES + LATENCY_QUERIES - len(self.some_queries)]


def sample(texts: Sequence[str]) -> list[str]:
    """At most SAMPLE of the texts, evenly spread."""
    step = max(1, len(texts) // SAMPLE)
    return list(texts[::step][:SAMPLE])


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
