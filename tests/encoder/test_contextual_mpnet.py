"""An MPNet model as Contextual encoder: the vectors that sentence-transformers' way of reading it gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from epic_search.encoder import Encoder
from epic_search.encoder.config import ContextualConfig, EncoderConfig, LoraSettings
from epic_search.encoder.contextual import ContextualEncoder

TEXTS = ["a short one", "z", "something longer, so that the others are padded"]


@pytest.fixture
def folder(tiny_contextual_folder: Path, tmp_path: Path) -> Path:
    from tokenizers import Tokenizer
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(3)
    config = MPNetConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=66,
        relative_attention_num_buckets=32,
        pad_token_id=1,
        initializer_range=0.2,
    )
    MPNetModel(config).save_pretrained(tmp_path / "mpnet")
    Tokenizer.from_file(str(tiny_contextual_folder / "tokenizer.json")).save(str(tmp_path / "mpnet" / "tokenizer.json"))
    return tmp_path / "mpnet"


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_vectors_are_means_over_each_text_read_alone(folder: Path, layout: str) -> None:
    from tokenizers import Tokenizer
    from transformers import MPNetModel

    encoder = ContextualEncoder(folder, max_length=512, dtype=torch.float32)
    encoder.use_layout(layout)
    found = encoder.encode(TEXTS).numpy()
    plain = MPNetModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = plain(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()
        np.testing.assert_allclose(vector, wanted, atol=1e-5)


def test_lora_layers_learn_and_are_merged(folder: Path, tiny_config: EncoderConfig, tmp_path: Path) -> None:
    contextual = ContextualConfig(encoder=str(folder), max_length=64, lora=LoraSettings(rank=2))
    encoder = Encoder.create(tiny_config.model_copy(update={"contextual": contextual}), device="cpu")
    context_NC = encoder.context(TEXTS)
    assert context_NC is not None and encoder.model.contextual is not None
    (context_NC[0] @ context_NC[1]).backward()
    trained = [parameter for parameter in encoder.model.contextual.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 6 and all(parameter.grad is not None for parameter in trained)
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.2)
    encoder.save(tmp_path / "encoder")
    loaded = Encoder.load(tmp_path / "encoder", device="cpu", dtype="float32").context(TEXTS)
    moved = encoder.context(TEXTS)
    assert loaded is not None and moved is not None
    np.testing.assert_allclose(loaded, moved.detach(), atol=1e-5)
    assert (moved - context_NC).abs().max() > 0.01


def test_texts_are_cut_where_its_positions_end(folder: Path) -> None:
    encoder = ContextualEncoder(folder, max_length=512, dtype=torch.float32)
    encoder.use_layout("padded")
    cut, longer = encoder.encode(["x" * 62, "x" * 200]).numpy()  # 64 tokens with those around the text
    np.testing.assert_allclose(cut, longer, atol=1e-5)
