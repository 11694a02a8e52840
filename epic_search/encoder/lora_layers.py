"""LoRA layers to train (Hu et al. 2021, arXiv 2106.09685), injected, named and stored by peft.

What they compute is x W^T + bias + scale * x A^T B^T, with the last product added into the output of the first: peft's
own forward makes three more arrays as large as the output, which takes about a tenth of a training step on two CPU
cores.

Shapes: N tokens, I and O inputs and outputs of a linear layer, R rank.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners import lora
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.config import LORA_WEIGHTS, LoraSettings
from epic_search.encoder.lora import PEFT_PREFIX
from epic_search.errors import UserError


def add_lora(model: nn.Module, settings: LoraSettings, *, folder: Path | None = None) -> None:
    """Put trainable LoRA layers into a model, fresh or from a folder that `save_lora` wrote.

    Raises UserError when the targets name no linear layer of the model, and when the folder's are of other layers.
    """
    linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
    try:
        inject_adapter_in_model(_peft_config(settings), model)
    except ValueError as error:
        raise UserError(
            f"LoRA's targets {settings.targets!r} are no linear layers of this model, which has {', '.join(linear)}; "
            "name some of these, or take 'all-linear'"
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if folder is not None:
        saved = {name.removeprefix(PEFT_PREFIX): value for name, value in load_file(folder / LORA_WEIGHTS).items()}
        expected = get_peft_model_state_dict(model).keys()
        if saved.keys() != expected:
            odd = min(saved.keys() ^ expected)
            raise UserError(f"the LoRA weights in {folder} do not fit this model: only one of them has {odd}")
        set_peft_model_state_dict(model, saved)


def save_lora(model: nn.Module, settings: LoraSettings, folder: Path, *, base: str) -> None:
    """Write the LoRA layers of a model in peft's own format. `base`: the model's name."""
    config = _peft_config(settings)
    config.base_model_name_or_path = base
    state = {
        PEFT_PREFIX + name: value.detach().cpu().contiguous()
        for name, value in get_peft_model_state_dict(model).items()
    }
    assert state, "this model has no LoRA layers of its own: were they merged?"
    folder.mkdir(exist_ok=True)
    save_file(state, folder / LORA_WEIGHTS)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _peft_config(settings: LoraSettings) -> LoraConfig:
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        bias="none",
    )
    if not settings.dropout:  # with it, the two products have different inputs
        config._register_custom_module({nn.Linear: LowRankLinear})  # peft's documented way to bring an own layer
    return config


class LowRankLinear(lora.Linear):
    """peft's linear layer with one adapter."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (name,) = self.active_adapters
        a_RI, b_OR = self.lora_A[name].weight, self.lora_B[name].weight
        base = self.get_base_layer()
        assert isinstance(base, nn.Linear), type(base)
        out: Tensor = _LowRankUpdate.apply(x, base.weight, base.bias, a_RI, b_OR, self.scaling[name])
        return out


class _LowRankUpdate(torch.autograd.Function):
    """x W^T + bias + scale * x A^T B^T for a frozen W and bias, in the precision of W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1]).to(weight_OI.dtype)
        a_RI, b_OR = a_RI.to(weight_OI.dtype), b_OR.to(weight_OI.dtype)
        low_NR = x_NI @ a_RI.T
        out_NO = F.linear(x_NI, weight_OI, bias_O).addmm_(low_NR, b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, low_NR, weight_OI, a_RI, b_OR)
        ctx.scale, ctx.shape = scale, x.shape
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, low_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        gradient_NO = gradient.reshape(-1, gradient.shape[-1])
        gradient_NR = (gradient_NO @ b_OR).mul_(ctx.scale)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = (gradient_NO @ weight_OI).addmm_(gradient_NR, a_RI).view(ctx.shape)
        gradient_b = (gradient_NO.T @ low_NR).mul_(ctx.scale)
        return gradient_x, None, None, gradient_NR.T @ x_NI, gradient_b, None
