"""Decoders other than Llama: whichever layout is chosen, a vector does not depend on its neighbours."""

from pathlib import Path

import pytest
import torch

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.config import EncoderConfig

TEXTS = ["one", "a second, longer text than the first", "x", "the last of these few texts"]
SMALL = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize(
    ("architecture", "extra", "layout"),
    [
        ("mistral", {"sliding_window": None}, "packed"),
        ("mistral", {"sliding_window": 16}, "padded"),
        ("qwen2", {}, "packed"),
        ("qwen3", {}, "packed"),
        ("gemma", {}, "packed"),
        ("gemma2", {"sliding_window": 16}, "padded"),
        ("gemma3_text", {"sliding_window": 16}, "padded"),
    ],
)
def test_vectors_do_not_depend_on_neighbours(
    architecture: str,
    extra: dict,
    layout: str,
    tiny_backbone_folder: Path,
    tiny_contextual_folder: Path,
    tmp_path: Path,
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    backbone = tmp_path / "backbone"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SMALL, **extra)).save_pretrained(backbone)
    (backbone / "tokenizer.json").write_bytes((tiny_backbone_folder / "tokenizer.json").read_bytes())
    config = EncoderConfig.model_validate(
        {
            "name": architecture,
            "backbone": str(backbone),
            "max_length": 64,
            "pooling": "concat",
            "contextual": {"encoder": str(tiny_contextual_folder), "max_length": 64},
            "lora": {"rank": 2, "alpha": 4},
        }
    )
    Encoder.create(config, device="cpu").save(tmp_path / "encoder")
    encoder = Encoder.load(tmp_path / "encoder", device="cpu", dtype="float32")
    assert encoder.model.layout == layout
    prompt = encoder.prompt(task="t", demonstrations=[Demonstration(query="q", passage="p")])
    together = encoder.encode_queries(TEXTS, prompt=prompt)
    for text, vector_E in zip(TEXTS, together, strict=True):
        assert encoder.encode_queries([text], prompt=prompt)[0] @ vector_E >= 0.99999
    encoder.model.use_layout("padded")
    assert (encoder.encode_queries(TEXTS, prompt=prompt) * together).sum(axis=1).min() >= 0.99999
