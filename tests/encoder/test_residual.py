"""The residual: an untrained encoder's vectors are its Contextual encoder's, and what is trained is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.residual import Residual
from epic_search.errors import UserError

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
        np.testing.assert_allclose(vectors, context.numpy(), atol=1e-5)


def test_calibrated_states_have_mean_zero_and_unit_length_on_average() -> None:
    residual = Residual(states_width=64, context_width=4)
    random = torch.Generator().manual_seed(0)
    common_S, spread_S = 9 * torch.randn(64, generator=random), torch.rand(64, generator=random)
    common_S[7] = spread_S[7] = 0.0
    states_NS = common_S + spread_S * torch.randn(500, 64, generator=random)
    residual.calibrate(states_NS)
    seen: list[torch.Tensor] = []
    residual.states.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    residual(states_NS, torch.zeros(500, 4))
    assert seen[0].mean(dim=0).abs().max() < 1e-4, "what all states share is gone"
    assert 0.9 < seen[0].square().sum(dim=1).mean() < 1.01
    spread_S = seen[0].std(dim=0) * 8
    assert spread_S[[i for i in range(64) if i != 7]].min() > 0.5 and spread_S[7] == 0, "none is infinite"


def test_what_was_trained_is_saved_and_loaded(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = Encoder.create(config, device="cpu")
    plain = encoder.encode_passages(TEXTS)
    assert encoder.model.residual is not None
    encoder.model.residual.calibrate(torch.randn(50, 64) + 1)
    torch.nn.init.normal_(encoder.model.residual.states.weight, std=0.1)
    trained = encoder.encode_passages(TEXTS)
    assert np.abs(trained - plain).max() > 0.01, "the decoder's states count now"
    encoder.save(tmp_path / "encoder")
    loaded = Encoder.load(tmp_path / "encoder", device="cpu", dtype="float32")
    np.testing.assert_allclose(loaded.encode_passages(TEXTS), trained, atol=1e-5)


def test_a_residual_of_an_earlier_version_is_named(config: EncoderConfig, tmp_path: Path) -> None:
    Encoder.create(config, device="cpu").save(tmp_path / "encoder")
    file = tmp_path / "encoder" / "projectors.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k not in ("residual.mean", "residual.scale")}, file)
    with pytest.raises(UserError, match="a residual of an earlier version, whose vectors were wider; train"):
        Encoder.load(tmp_path / "encoder", device="cpu")


def test_training_for_matryoshka_widths_starts_from_the_same_vectors(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = Encoder.create(config, device="cpu")
    assert encoder.model.residual is not None
    torch.nn.init.normal_(encoder.model.residual.states.weight, std=0.1)
    encoder.save(tmp_path / "encoder")
    widths = Encoder.create(config.model_copy(update={"matryoshka": [8]}), start=tmp_path / "encoder", device="cpu")
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
