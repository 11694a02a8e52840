"""Our LoRA layers compute what peft's do, and so do their gradients."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import nn

from epic_search.encoder.config import LoraSettings
from epic_search.encoder.lora_layers import add_lora
from epic_search.errors import UserError


def made(*, ours: bool, dtype: torch.dtype, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(4)
    model = nn.ModuleDict({"q_proj": nn.Linear(24, 40), "v_proj": nn.Linear(40, 8, bias=False)}).to(dtype)
    model.requires_grad_(False)
    settings = LoraSettings(rank=4, alpha=12, dropout=dropout, targets=["q_proj", "v_proj"])
    if ours:
        add_lora(model, settings)  # type: ignore[arg-type]
    else:
        config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=settings.targets)
        inject_adapter_in_model(config, model)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.3
    return model


def run(model: nn.Module, x: torch.Tensor, *, mixed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        out = model["v_proj"](torch.tanh(model["q_proj"](x)))  # type: ignore[index]
    out.float().square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return out.detach().float(), {"x": x.grad, **gradients}


@pytest.mark.parametrize("mixed", [False, True])
def test_outputs_and_gradients_are_pefts(mixed: bool) -> None:
    dtype = torch.bfloat16 if mixed else torch.float32
    mine, theirs = made(ours=True, dtype=dtype), made(ours=False, dtype=dtype)
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(6))
    (out, gradients), (expected, others) = run(mine, x, mixed=mixed), run(theirs, x, mixed=mixed)
    near = {"atol": 0.05, "rtol": 0.05} if mixed else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(out, expected, **near)
    assert gradients.keys() == others.keys() and len(gradients) == 5
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
        scale = others[name].abs().max()
        torch.testing.assert_close(gradient / scale, others[name] / scale, **near)


def test_targets_that_the_model_does_not_have() -> None:
    model = nn.ModuleDict({"query": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    for targets in (["q_proj"], ["norm"]):
        with pytest.raises(UserError, match=r"targets \['\w+'\] are no linear layers of this model, which has query;"):
            add_lora(model, LoraSettings(targets=targets))


def test_dropout_is_left_to_peft() -> None:
    model = made(ours=True, dtype=torch.float32, dropout=0.5)
    assert {type(layer) for name, layer in model.named_children()} == {Linear}
