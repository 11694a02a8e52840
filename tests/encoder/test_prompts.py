"""Texts that each have a prompt of their own: the vectors are those of encoding each text under its prompt alone."""

import numpy as np
import pytest

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.prompt import SOFT_SLOT
from epic_search.errors import UserError

TEXTS = ["red", "a text of middling length, with some words", "x", "seven and eight"]
PAIRS = [Demonstration(query=f"query {n}", passage=f"the passage of number {n}") for n in range(5)]


@pytest.mark.parametrize("kind", ["soft", "text"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rows_under_different_prompts_share_a_batch(tiny_encoder: Encoder, kind: str, layout: str) -> None:
    prompts = [tiny_encoder.prompt(task="t", demonstrations=PAIRS[:k], kind=kind) for k in (3, 0, 1)]
    prompts.append(prompts[0])
    alone = [tiny_encoder.encode_queries([text], prompt=p)[0] for text, p in zip(TEXTS, prompts, strict=True)]
    tiny_encoder.model.use_layout(layout)
    try:
        together = tiny_encoder.encode_queries(TEXTS, prompts=prompts)
    finally:
        tiny_encoder.model.use_layout("packed")
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-6)
    assert np.abs(together - tiny_encoder.encode_queries(TEXTS, prompt=prompts[1])).max() > 1e-3


def test_a_prompt_of_another_encoder_among_them(tiny_encoder: Encoder) -> None:
    mine = tiny_encoder.prompt(demonstrations=PAIRS[:1])
    theirs = type(mine)(None, mine.demonstrations, mine.vectors_SE, "f" * 64)
    with pytest.raises(UserError, match="the prompt's vectors are of encoder ffffffffffff"):
        tiny_encoder.encode_queries(["a", "b"], prompts=[mine, theirs])


@pytest.mark.parametrize(("markers", "tokens"), [("words", len("Query:\nResponse:\n") + 2), ("lines", 3)])
def test_what_stands_around_soft_tokens(tiny_config: EncoderConfig, markers: str, tokens: int) -> None:
    soft = tiny_config.soft_tokens.model_copy(update={"markers": markers})
    encoder = Encoder.create(tiny_config.model_copy(update={"soft_tokens": soft}), device="cpu")
    none, three = (encoder.template.query(task="t", demonstrations=k) for k in (0, 3))
    assert len(three) - len(none) == 3 * tokens
    assert three.head.count(SOFT_SLOT) == 6
    texts = encoder.template.query(task="t", demonstrations=[([5], [6, 7])])
    assert len(texts) - len(none) == len("Query:\nResponse:\n") + 3, "texts keep their words"
