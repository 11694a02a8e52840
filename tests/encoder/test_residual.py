"""The residual: an untrained encoder ranks as its Contextual encoder does, and what is trained is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.config import EncoderConfig

TEXTS = ["a short one", "another text", "something else entirely", "z", "the longest text of them all, by far"]


@pytest.fixture
def config(tiny_config: EncoderConfig) -> EncoderConfig:
    assert tiny_config.contextual is not None
    residual = tiny_config.contextual.model_copy(update={"residual": True})
    return tiny_config.model_copy(update={"contextual": residual})


def test_an_untrained_encoder_is_its_contextual_encoder(config: EncoderConfig) -> None:
    encoder = Encoder.create(config, device="cpu")
    context = encoder.context(TEXTS)
    assert context is not None
    prompt = encoder.prompt(task="whatever it is")
    for vectors in (encoder.encode_passages(TEXTS), encoder.encode_queries(TEXTS, prompt=prompt)):
        np.testing.assert_allclose(vectors @ vectors.T, (context @ context.T).numpy(), atol=1e-5)


def test_what_was_trained_is_saved_and_loaded(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = Encoder.create(config, device="cpu")
    plain = encoder.encode_passages(TEXTS)
    assert encoder.model.residual is not None
    torch.nn.init.normal_(encoder.model.residual.states.weight, std=0.1)
    trained = encoder.encode_passages(TEXTS)
    assert np.abs(trained - plain).max() > 0.01, "the decoder's states count now"
    encoder.save(tmp_path / "encoder")
    loaded = Encoder.load(tmp_path / "encoder", device="cpu", dtype="float32")
    np.testing.assert_allclose(loaded.encode_passages(TEXTS), trained, atol=1e-5)


def test_training_for_matryoshka_widths_starts_from_the_same_vectors(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = Encoder.create(config, device="cpu")
    assert encoder.model.residual is not None
    torch.nn.init.normal_(encoder.model.residual.states.weight, std=0.1)
    encoder.save(tmp_path / "encoder")
    widths = Encoder.create(config.model_copy(update={"matryoshka": [16]}), start=tmp_path / "encoder", device="cpu")
    shown = [Demonstration(query="a", passage="b")]
    for mine, theirs in (
        (widths.encode_passages(TEXTS), encoder.encode_passages(TEXTS)),
        (
            widths.encode_queries(TEXTS, prompt=widths.prompt(demonstrations=shown)),
            encoder.encode_queries(TEXTS, prompt=encoder.prompt(demonstrations=shown)),
        ),
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_texts_alone_have_the_vectors_they_have_in_a_batch(config: EncoderConfig) -> None:
    encoder = Encoder.create(config, device="cpu")
    assert encoder.model.residual is not None
    torch.nn.init.normal_(encoder.model.residual.states.weight, std=0.1)
    alone = np.concatenate([encoder.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, encoder.encode_passages(TEXTS), atol=1e-5)
