"""Training on AMX tiles: states and gradients are those of transformers' layers, and it is taken where it can be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epic_search.encoder import Encoder
from epic_search.encoder.attention import Packing
from epic_search.encoder.backbone import load_backbone, use_layout
from epic_search.encoder.config import EncoderConfig, LoraSettings
from epic_search.encoder.learning_decoder import LearningDecoder, learning_decoder
from epic_search.encoder.lora_layers import add_lora
from epic_search.encoder.passes import VARIABLE, Compiled

LENGTHS = [31, 30, 24, 9, 3, 1]
WIDE = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "initializer_range": 0.1,
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, tiles: Compiled) -> Make:
    """A backbone with LoRA layers that do something; the same weights in each precision."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def made(kind: str = "llama", *, dtype: torch.dtype, targets: list[str] = ALL, **options: Any) -> Any:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **WIDE, **options)).bfloat16()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=0.5)
        model.save_pretrained(tmp_path / kind)
        backbone = load_backbone(tmp_path / kind, layers=None, dtype=dtype)
        if targets:
            add_lora(backbone, LoraSettings(rank=5, alpha=7, targets=targets))
            for name, parameter in backbone.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        use_layout(backbone, "packed", plain="sdpa")
        return backbone

    return made


def run(backbone: Any, decoder: LearningDecoder | None, reads_BR: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """States and gradients, of what is read, through the fast way or, where there is none, transformers' layers."""
    torch.manual_seed(1)
    packing = Packing(LENGTHS, torch.device("cpu"))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    tokens = (torch.randn(sum(LENGTHS), WIDE["hidden_size"]) / 2).bfloat16().to(backbone.dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
        if decoder is not None:
            states = decoder(tokens, positions, packing, reads_BR=reads_BR)
        else:
            inputs = {"inputs_embeds": tokens[None], "position_ids": positions[None], "packing": packing}
            states = backbone(**inputs, use_cache=False).last_hidden_state[0]
            if reads_BR is not None:
                states = states[(packing.boundaries[:-1, None] + reads_BR).flatten()]
    (states.float() * torch.randn(states.shape)).sum().backward()
    found = {name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert tokens.grad is not None
    return states.detach().float(), {"tokens": tokens.grad, **found}


def far(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("reads", [None, 1, 2], ids=["all are read", "the last", "the first and the last"])
@pytest.mark.parametrize(
    ("kind", "targets", "options"),
    [
        ("llama", ALL, {}),
        ("llama", ["k_proj", "v_proj", "down_proj"], {}),
        ("llama", [], {}),
        ("llama", ALL, {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", ["q_proj", "gate_proj"], {}),
    ],
    ids=["all layers", "some layers", "no LoRA", "biases", "qwen2"],
)
def test_states_and_gradients_are_as_near_to_float32_as_under_autocast(
    make: Make, reads: int | None, kind: str, targets: list[str], options: dict
) -> None:
    last = torch.tensor(LENGTHS)[:, None] - 1
    reads_BR = None if reads is None else last if reads == 1 else torch.cat([torch.zeros_like(last), last], dim=1)
    exact, of_exact = run(make(kind, dtype=torch.float32, targets=targets, **options), None, reads_BR)
    plain, of_plain = run(make(kind, dtype=torch.bfloat16, targets=targets, **options), None, reads_BR)
    backbone = make(kind, dtype=torch.bfloat16, targets=targets, **options)
    found, of_found = run(backbone, learning_decoder(backbone), reads_BR)
    assert far(found, exact) <= 1.2 * far(plain, exact) < 0.05
    assert of_found.keys() == of_plain.keys() == of_exact.keys() and len(of_found) == 1 + 4 * len(targets)
    for name, gradient in of_exact.items():
        assert of_found[name].dtype == of_plain[name].dtype
        assert far(of_found[name], gradient) <= 1.2 * far(of_plain[name], gradient) + 5e-3, name


def test_it_computes_with_the_weights_as_they_are_now(make: Make) -> None:
    backbone = make(dtype=torch.bfloat16)
    decoder = learning_decoder(backbone)
    before, _ = run(backbone, decoder, None)
    for name, parameter in backbone.named_parameters():
        if "down_proj.lora_B" in name:
            parameter.data.mul_(3)
    after, _ = run(backbone, decoder, None)
    assert far(after, run(backbone, None, None)[0]) < 0.03 < far(before, after)


def test_it_is_taken_where_it_can_be(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert learning_decoder(make(dtype=torch.bfloat16)) is not None
    assert learning_decoder(make(dtype=torch.float32)) is None, "products on tiles are in bfloat16"
    assert learning_decoder(make("qwen3", dtype=torch.bfloat16)) is None, "its heads have norms of their own"
    dropping = make(dtype=torch.bfloat16, targets=[])
    add_lora(dropping, LoraSettings(rank=2, alpha=4, dropout=0.1))
    assert learning_decoder(dropping) is None, "dropout is left to peft"
    learning = make(dtype=torch.bfloat16, targets=[])
    learning.layers[1].mlp.up_proj.weight.requires_grad_()
    assert learning_decoder(learning) is None, "packed weights do not learn"
    monkeypatch.setenv(VARIABLE, "off")
    assert learning_decoder(make(dtype=torch.bfloat16)) is None


def test_encoders_are_trained_by_it(wide_config: EncoderConfig, tiles: Compiled) -> None:
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        made[dtype] = Encoder.create(wide_config, device="cpu", dtype=dtype)
    assert made[torch.float32].model._learning is None and made[torch.bfloat16].model._learning is not None
    plain, fast = (encoder.encode_passages(["a text", "and another one"]) for encoder in made.values())
    assert (plain * fast).sum(axis=1).min() > 0.999
