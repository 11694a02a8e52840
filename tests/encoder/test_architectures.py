"""Decoders other than Llama: whichever layout is chosen, a vector does not depend on its neighbours.

Padded batches go through transformers as it is, so they are the reference of every fast path at once: packed texts, the
shared prefix, cascade attention, compiled passes, and the last layer computed only where it is read.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_search.encoder import Demonstration, Encoder, Prompt, passes
from epic_search.encoder.attention import CASCADE_FROM
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.prefix import common

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
    monkeypatch: pytest.MonkeyPatch,
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
    monkeypatch.setattr(passes, "WORTH", 1)
    for (dtype, least), compiled in itertools.product((("float32", 0.99999), ("bfloat16", 0.999)), ("off", "auto")):
        monkeypatch.setenv(passes.VARIABLE, compiled)
        encoder = Encoder.load(tmp_path / "encoder", device="cpu", dtype=dtype)
        assert encoder.model.layout == layout
        prompts = prompts_of(encoder)

        def encode(texts: list[str], encoder: Encoder = encoder, prompts: list[Prompt] = prompts) -> np.ndarray:
            queries = [encoder.encode_queries(texts, prompt=prompt) for prompt in prompts]
            return np.stack([encoder.encode_passages(texts), *queries])

        together = encode(TEXTS)
        alone = np.concatenate([encode([text]) for text in TEXTS], axis=1)
        encoder.model.use_layout("padded")
        assert (together * alone).sum(axis=-1).min() >= least
        assert (together * encode(TEXTS)).sum(axis=-1).min() >= least


def prompts_of(encoder: Encoder) -> list[Prompt]:
    """Soft demonstrations, and texts in a prefix long enough for cascade attention."""
    shown = [Demonstration(query=f"a query, number {i}", passage=f"the passage that answers it, {i}") for i in range(2)]
    prompts = [encoder.prompt(task="t", demonstrations=shown, kind=kind) for kind in ("soft", "text")]
    if encoder.model.shares_prefixes:
        soft, text = (common([encoder.layout(prompt)]) for prompt in prompts)
        assert len(soft) < CASCADE_FROM <= len(text)
    return prompts
