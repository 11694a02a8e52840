"""What many threads ask together is what each would have got alone."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_search.encoder import Demonstration, Encoder
from epic_search.index import Searcher
from epic_search.serving.shared import SharedEncoder, SharedStore

TEXTS = ["otter", "a heron by the river at night", "lynx", "newts, stoats and ravens", "", "trout " * 20]
PAIRS = [Demonstration(query="otter", passage="The otter sleeps."), Demonstration(query="lynx", passage="It hides.")]


@pytest.fixture
def batches() -> list[int]:
    return []


@pytest.fixture
def shared(tiny_encoder: Encoder, batches: list[int]) -> Iterator[SharedEncoder]:
    encoder = SharedEncoder(tiny_encoder, observe=lambda texts, tokens: batches.append(texts))
    yield encoder
    encoder.close()


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """The results of calls that start together in threads."""
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], Any]) -> Any:
        barrier.wait(timeout=240)
        return one()

    with ThreadPoolExecutor(len(work)) as threads:
        return list(threads.map(run, work))


def test_queries_of_different_prompts_and_passages_share_batches_and_keep_their_vectors(
    shared: SharedEncoder, tiny_encoder: Encoder, batches: list[int]
) -> None:
    prompts = [
        tiny_encoder.prompt(),
        tiny_encoder.prompt(task="find the animal"),
        tiny_encoder.prompt(task="find the animal", demonstrations=PAIRS),
    ]
    alone = [tiny_encoder.encode_queries([text], prompt=prompt) for prompt in prompts for text in TEXTS]
    alone += [tiny_encoder.encode_passages([text]) for text in TEXTS]
    work: list[Callable[[], Any]] = [
        lambda text=text, prompt=prompt: shared.encode_queries([text], prompt=prompt)  # type: ignore[misc]
        for prompt in prompts
        for text in TEXTS
    ]
    work += [lambda text=text: shared.encode_passages([text]) for text in TEXTS]  # type: ignore[misc]
    together = at_once(*work)
    cosines = [float(np.sum(mine * theirs)) for mine, theirs in zip(together, alone, strict=True)]
    assert min(cosines) >= 0.99999
    assert sum(batches) == len(work)
    assert len(batches) <= len(work) / 2, batches


def test_a_prompt_is_made_once(shared: SharedEncoder) -> None:
    made = at_once(*[lambda: shared.prompt(task="find the animal", demonstrations=PAIRS)] * 4)
    assert all(prompt is made[0] for prompt in made)
    assert shared.prompt(task="find the place", demonstrations=PAIRS) is not made[0]


def test_searches_of_many_threads_find_what_each_finds_alone(
    home: Path, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [f"the {animal} of note {n}" for n, animal in enumerate(["otter", "heron", "lynx", "newt"] * 4)]
    sizes: list[int] = []
    with Searcher.open("notes", home=home, encoder=tiny_encoder) as searcher:
        alone = [searcher.search([query], k=1 + n % 3)[0] for n, query in enumerate(queries)]
        searcher.through(lambda store: SharedStore(store, observe=lambda asked, _: sizes.append(asked)))  # type: ignore[arg-type, return-value]
        one_at_a_time = threading.Lock()  # the encoder is not shared here
        encode = tiny_encoder.encode_queries

        def encode_alone(*arguments: Any, **options: Any) -> np.ndarray:
            with one_at_a_time:
                return encode(*arguments, **options)

        monkeypatch.setattr(tiny_encoder, "encode_queries", encode_alone)
        work: list[Callable[[], Any]] = [
            lambda query=query, n=n: searcher.search([query], k=1 + n % 3)[0]  # type: ignore[misc]
            for n, query in enumerate(queries)
        ]
        together = at_once(*work)
    assert [[hit.id for hit in hits] for hits in together] == [[hit.id for hit in hits] for hits in alone]
    assert np.allclose([hit.score for hits in together for hit in hits], [hit.score for hits in alone for hit in hits])
    assert sum(sizes) == len(queries)
