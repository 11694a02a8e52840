"""What several tests of training need."""

import pytest
import torch

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig


@pytest.fixture
def encoder(tiny_config: EncoderConfig) -> Encoder:
    """A trainable encoder whose LoRA layers do something, as after some steps."""
    return _trainable(tiny_config)


@pytest.fixture
def text_encoder(tiny_config: EncoderConfig) -> Encoder:
    """The same weights, to be trained on text demonstrations."""
    return _trainable(tiny_config.model_copy(update={"demonstrations": "text"}))


def _trainable(config: EncoderConfig) -> Encoder:
    torch.manual_seed(6)
    encoder = Encoder.create(config, device="cpu")
    for name, parameter in encoder.model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return encoder
