"""Model folders read without transformers, whose import takes longer than all else that a first query needs.

A bare model has the modules and the names that transformers gives it, and its weights, mapped from safetensors files. A
decoder has no forward pass here: in use, texts go through `Decoder`. What is trained, and what is laid out padded, is a
transformers model; `in_transformers` makes one of a bare model.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
SINGLE_FILE, FILE_LIST = "model.safetensors", "model.safetensors.index.json"
# What a configuration has to say: what it leaves out is a default, and those are transformers' to know.
REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "max_position_embeddings",
    "rms_norm_eps",
    "eos_token_id",
)


class Bare(nn.Module):
    """A frozen model of a folder, in evaluation mode. `options`: of the class in transformers."""

    options: dict[str, object] = {}

    def __init__(self, folder: Path, config: SimpleNamespace) -> None:
        super().__init__()
        self.folder = folder
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def fill(self, *, dtype: torch.dtype) -> "Bare":
        """Take the weights of the folder; raises ValueError where they are not those of this model."""
        from safetensors import SafetensorError

        try:
            self.load_state_dict(read_weights(self, self.folder, dtype=dtype), assign=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(str(error)) from error
        return self.eval().requires_grad_(False)

    def in_transformers(self) -> "PreTrainedModel":
        """The same model as transformers builds it, with these weights."""
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        if (layers := self.config.num_hidden_layers) < config.num_hidden_layers:
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        model = AutoModel.from_config(config, dtype=self.dtype, trust_remote_code=False, **self.options)
        model.load_state_dict(self.state_dict())
        return model.to(next(self.parameters()).device).eval().requires_grad_(False)


class BareDecoder(Bare):
    """The weights of a Llama-like decoder, without its language-model head."""

    def __init__(self, folder: Path, config: SimpleNamespace, *, dtype: torch.dtype) -> None:
        """On the meta device."""
        super().__init__(folder, config)
        with torch.device("meta"):
            self.embed_tokens = embedding(config.vocab_size, config.hidden_size, dtype=dtype)
            self.layers = nn.ModuleList(_Layer(config, dtype) for _ in range(config.num_hidden_layers))
            self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.rotary_emb = Rotary(config.head_dim, base=config.rope_theta)

    def get_input_embeddings(self) -> nn.Embedding:
        """As of a transformers model."""
        return self.embed_tokens


class _Layer(nn.Module):
    self_attn: Any
    mlp: Any

    def __init__(self, config: SimpleNamespace, dtype: torch.dtype) -> None:
        super().__init__()
        kind, has_bias = config.model_type, config.model_type in ("llama", "qwen3") and config.attention_bias
        width, heads, groups, head = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )

        def linear(wide: int, out: int, *, bias: bool) -> nn.Linear:
            return nn.Linear(wide, out, bias=bias, dtype=dtype)

        def norm(wide: int) -> nn.RMSNorm:
            return nn.RMSNorm(wide, eps=config.rms_norm_eps, dtype=dtype)

        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.head_dim, self.self_attn.scaling = head, head**-0.5
        self.self_attn.q_proj = linear(width, heads * head, bias=has_bias or kind == "qwen2")
        self.self_attn.k_proj = linear(width, groups * head, bias=has_bias or kind == "qwen2")
        self.self_attn.v_proj = linear(width, groups * head, bias=has_bias or kind == "qwen2")
        self.self_attn.o_proj = linear(heads * head, width, bias=has_bias)
        if kind == "qwen3":
            self.self_attn.q_norm, self.self_attn.k_norm = norm(head), norm(head)
        has_bias = kind == "llama" and config.mlp_bias
        self.mlp.act_fn = F.silu
        self.mlp.gate_proj = linear(width, config.intermediate_size, bias=has_bias)
        self.mlp.up_proj = linear(width, config.intermediate_size, bias=has_bias)
        self.mlp.down_proj = linear(config.intermediate_size, width, bias=has_bias)
        self.input_layernorm, self.post_attention_layernorm = norm(width), norm(width)


class Rotary(nn.Module):
    """Cosines and sines of rotary position embeddings (arXiv 2104.09864)."""

    frequencies: Tensor

    def __init__(self, width: int, *, base: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", 1.0 / base ** (torch.arange(0, width, 2) / width), persistent=False)

    def forward(self, states: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, width) each, in the precision of the states."""
        angles = (positions_BT[..., None].float() * self.frequencies.float()).repeat(1, 1, 2)
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


def embedding(rows: int, width: int, *, dtype: torch.dtype) -> nn.Embedding:
    """One without values: to draw some, for the meta device too, torch imports its compiler, which takes seconds."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width, dtype=dtype, device="meta"))


def bare_decoder(folder: Path, *, layers: int | None, dtype: torch.dtype) -> BareDecoder | None:
    """The decoder of a folder on the meta device, or None where it is not one that can be read without transformers."""
    config = decoder_config(folder)
    if config is None or (layers or 0) > config.num_hidden_layers:
        return None
    config.num_hidden_layers = layers or config.num_hidden_layers
    return BareDecoder(folder, config, dtype=dtype)


def decoder_config(folder: Path) -> SimpleNamespace | None:
    """What config.json says of a decoder as plain as those of DECODERS are, spelt out; None for any other."""
    raw = raw_config(folder)
    if raw.get("model_type") not in DECODERS or any(raw.get(name) is None for name in REQUIRED):
        return None
    # Of two spellings transformers reads the older one.
    rope = {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or raw.get("rope_parameters") or {})}
    slides = raw.get("use_sliding_window") if raw["model_type"].startswith("qwen") else raw.get("sliding_window", True)
    if raw["model_type"] == "llama":
        slides = False
    if (
        slides
        or "bos_token_id" not in raw  # null says that there is none
        or rope.get("rope_theta") is None
        or rope.get("rope_type", rope.get("type", "default")) != "default"
        or raw.get("hidden_act") != "silu"
        or raw.get("quantization_config") is not None
        or set(raw.get("layer_types") or ["full_attention"]) != {"full_attention"}
    ):
        return None
    known = {
        "bos_token_id": None,
        "attention_bias": False,
        "mlp_bias": False,
        "sliding_window": None,
        "head_dim": raw["hidden_size"] // raw["num_attention_heads"],
        **{name: value for name, value in raw.items() if value is not None},
    }
    return SimpleNamespace(**known | {"rope_theta": rope["rope_theta"], "_attn_implementation": "sdpa"})


def raw_config(folder: Path) -> dict[str, Any]:
    """What config.json says; nothing where it cannot be read, which transformers will explain."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def files_of(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a folder; raises ValueError where that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        # Where both are, transformers reads the single file.
        if (folder / FILE_LIST).is_file() and not (folder / SINGLE_FILE).is_file():
            listed = json.loads((folder / FILE_LIST).read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in listed.items()}
        with safe_open(folder / SINGLE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE_FILE)
    except (OSError, LookupError, SafetensorError) as error:
        raise ValueError(str(error)) from error


def plain(name: str) -> str:
    """A tensor's name in the model itself: without the name of what was around it, or of old parameters of norms."""
    name = name.removeprefix("model.").removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_weights(model: nn.Module, folder: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a model out of a folder's files, mapped into memory where they are of this precision."""
    from safetensors import safe_open

    wanted, files = model.state_dict().keys(), files_of(folder)
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(files.values()):
        with safe_open(path, framework="pt") as file:
            for name in (name for name, where in files.items() if where == path and plain(name) in wanted):
                found[plain(name)] = file.get_tensor(name).to(dtype)
    return found
