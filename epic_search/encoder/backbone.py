"""The decoder-only LLM under an encoder: what `AutoModel` builds from a folder, cut to its first layers if asked."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from epic_search.encoder.attention import PACKED, register, varlen_attention
from epic_search.encoder.bare import Bare, BareDecoder, bare_decoder
from epic_search.encoder.config import BACKBONE_FOLDER
from epic_search.encoder.lora import merge_lora
from epic_search.encoder.tokenizer import load_tokenizer
from epic_search.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from epic_search.encoder.checkpoint import Checkpoint

BIDIRECTIONAL = ("bert", "roberta", "mpnet", "distilbert", "modernbert", "xlm-roberta", "deberta-v2")
PACKABLE = ("llama", "mistral", "qwen2", "qwen3", "gemma")
# What belongs to a model besides its weights and configuration: the tokenizer's files and the terms it comes under.
_BESIDE = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Choice:
    """A decision and why it was taken, so that it can be shown."""

    value: str
    reason: str


def load_backbone(folder: Path, *, layers: int | None, dtype: torch.dtype) -> "PreTrainedModel":
    """The decoder of a model folder, without its language-model head, with the attention that transformers chooses.

    Raises UserError when the folder's architecture is unknown, not a decoder, or has fewer layers than asked for.
    """
    config = read_config(folder)
    if getattr(config, "is_encoder_decoder", False) or config.model_type in BIDIRECTIONAL:
        raise UserError(f"{folder} holds a {config.model_type} model; a backbone must be a decoder-only language model")
    if layers is not None:
        _keep_layers(config, layers, folder)
    return load_model(folder, config, dtype=dtype)


def load_to_encode(folder: Path, *, layers: int | None, dtype: torch.dtype, device: torch.device) -> BareDecoder | None:
    """The decoder of a model folder without transformers; None where that has no fast way for it, or reads it better.

    On the CPU, frozen.
    """
    try:
        bare = bare_decoder(folder, layers=layers, dtype=dtype)
        if bare is None or choose_layout(bare, device=device).value != PACKED:
            return None
        bare.fill(dtype=dtype)
    except ValueError:  # what is wrong with the weights, transformers says better
        return None
    return bare


def read_config(folder: Path) -> "PretrainedConfig":
    """The model configuration of a folder; raises UserError when transformers cannot read it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{folder} has no model configuration that transformers can read: {one_line(error)}") from error


def load_model(folder: Path, config: "PretrainedConfig", *, dtype: torch.dtype, **options: object) -> "PreTrainedModel":
    """A frozen model in evaluation mode; raises UserError when its weights cannot be loaded."""
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # layers and heads that are left out on purpose would be reported as unexpected
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the weights in {folder} could not be loaded: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    return model.eval().requires_grad_(False)


def save_model(model: "PreTrainedModel | Bare", folder: Path, *, source: Path) -> None:
    """Write a model in safetensors, as transformers does, and the tokenizer and licences of the folder `source`."""
    (model.in_transformers() if isinstance(model, Bare) else model).save_pretrained(folder)
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    if not (folder / "tokenizer.json").is_file():
        load_tokenizer(source).save(str(folder / "tokenizer.json"))


def _keep_layers(config: "PretrainedConfig", layers: int, folder: Path) -> None:
    if layers > config.num_hidden_layers:
        raise UserError(
            f"layers = {layers}, but {folder} has only {config.num_hidden_layers}; ask for at most that many"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def one_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def choose_layout(backbone: "PreTrainedModel | Bare", *, device: torch.device, training: bool = False) -> Choice:
    """Packed or padded batches for this model on this device.

    Packed only where every layer mixes positions through plain causal attention and nothing else (a convolution or a
    recurrence would run across neighbouring texts): the architectures that the tests compare with padded batches.
    """
    config = backbone.config
    if device.type == "cuda" and (obstacle := varlen_obstacle(backbone, training=training)):
        return Choice("padded", obstacle)
    if config.model_type not in PACKABLE:
        return Choice("padded", f"{config.model_type} is not among {', '.join(PACKABLE)}")
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return Choice("padded", "some of its layers attend within a sliding window")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return Choice("padded", "its layers attend within a sliding window")
    return Choice(PACKED, "no work on padding")


def varlen_obstacle(backbone: "PreTrainedModel | Bare", *, training: bool) -> str | None:
    """Why `varlen_attn` cannot be this model's attention on the GPU; None if it can."""
    if training:
        return "varlen_attn takes no part in autocast, which training computes in"
    if varlen_attention() is None:
        return f"torch {torch.__version__} has no varlen_attn with grouped heads; 2.12 has"
    if backbone.dtype not in (torch.bfloat16, torch.float16):
        return f"varlen_attn computes in bfloat16 or float16, and the weights are {backbone.dtype}"
    if torch.cuda.get_device_capability() < (8, 0):
        return "varlen_attn needs a GPU of compute capability 8.0 (Ampere) or later"
    return None


def use_layout(model: "PreTrainedModel", layout: str, *, plain: str) -> None:
    """Switch a model's attention to the function that reads this layout; `plain` is the one for padded batches."""
    if layout == PACKED:
        register()
    model.set_attn_implementation(PACKED if layout == PACKED else plain)


def load_to_train(found: "Checkpoint", *, embeddings: bool) -> "PreTrainedModel":
    """A checkpoint's backbone in float32 with LoRA weights merged; all weights trained, token embeddings if asked for.

    A checkpoint that holds its backbone itself may be one of a run, which is deleted after the next: `found.backbone`
    is then what the run began with, and all else (the tokenizer) is read there.
    """
    own = found.folder / BACKBONE_FOLDER if found.folder else None
    if own is not None and own.is_dir():
        backbone = load_backbone(own, layers=None, dtype=torch.float32)
    else:
        backbone = load_backbone(found.backbone, layers=found.config.layers, dtype=torch.float32)
    if found.lora is not None:
        merge_lora(backbone, found.lora)
    backbone.requires_grad_(True)
    backbone.get_input_embeddings().requires_grad_(embeddings)
    return backbone
