"""LoRA weights for inference: added to the linear layers once (Hu et al. 2021, arXiv 2106.09685).

W + scale * B A is one product a layer, without importing peft, and no cost per token. The layers that train them are in
`lora_layers.py`.
"""

import json
from pathlib import Path

import torch
from torch import nn

from epic_search.encoder.config import LORA_CONFIG, LORA_WEIGHTS
from epic_search.errors import UserError

# How peft names the modules of the model it wraps; with it, PeftModel.from_pretrained reads the folder too.
PEFT_PREFIX = "base_model.model."


def merge_lora(model: nn.Module, folder: Path) -> None:
    """Add the LoRA weights of a folder in peft's format to the linear layers. Computed in float32."""
    from safetensors.torch import load_file

    config = json.loads((folder / LORA_CONFIG).read_text(encoding="utf-8"))
    if config.get("use_dora") or config.get("use_rslora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UserError(f"{folder} holds a LoRA variant other than plain LoRA with one rank; only that can be merged")
    scale = config["lora_alpha"] / config["r"]
    state = load_file(folder / LORA_WEIGHTS)
    modules = dict(model.named_modules())
    for name_a, a_RI in state.items():
        if not name_a.endswith(".lora_A.weight"):
            continue
        name = name_a.removesuffix(".lora_A.weight").removeprefix(PEFT_PREFIX)
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            raise UserError(f"the LoRA weights in {folder} do not fit this model, which has no linear layer {name}")
        b_OR = state[name_a.replace(".lora_A.", ".lora_B.")]
        with torch.no_grad():
            module.weight.copy_(torch.addmm(module.weight.float(), b_OR.float(), a_RI.float(), alpha=scale))
