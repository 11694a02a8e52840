"""Reads a GGUF file and writes it as a Hugging Face folder, once, so that everything else knows one format.

Files of the llama architecture are read directly: seconds instead of half a minute, and bit for bit the
float32 tensors that transformers' own reader gives. Other architectures go through transformers.

Shapes: O output rows, I input columns, H attention heads.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""What a converted folder holds."""

CONVERSION_VERSION = 1
"""Raised whenever the same GGUF would give another folder, so that cached folders are made again."""

INDIVIDUAL_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""Values of tokenizer.ggml.pre that split every digit off. Transformers ignores them all."""

_CONTROL, _USER_DEFINED = 3, 4  # values in tokenizer.ggml.token_type

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# What gguf's reader raises on a file that is cut, empty or not a GGUF at all.
_BAD_FILE = (ValueError, IndexError, KeyError, OverflowError, TypeError, AttributeError, MemoryError)


def convert(path: Path, into: Path) -> Path:
    """Write the GGUF file at `path` as the Hugging Face folder `into` (float32) and return `into`.

    The folder appears complete or not at all, also when several processes convert at once: one works, the
    others wait and take its result. An existing complete folder is returned as it is.

    Raises UserError if the file is not a readable GGUF, its architecture is unknown, `into` holds something
    else, or the folder cannot be written.
    """
    from filelock import FileLock

    if _complete(into):
        return into
    if not path.is_file():
        raise UserError(f"The GGUF file {path} does not exist: give the path of a .gguf file.")
    partial = into.parent / f".{into.name}.partial"
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(into.parent / f".{into.name}.lock"):
            if _complete(into):
                return into
            if into.exists() and (not into.is_dir() or any(into.iterdir())):
                raise UserError(f"{into} exists but is no complete model folder: delete it, then try again.")
            # Only the holder of the lock writes here, so what is there is left from a killed run.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _write_folder(path, partial)
                _sync(partial)
                partial.rename(into)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            _sync_entry(into.parent)
    except OSError as error:
        raise UserError(
            f"Converting {path} needs room for a float32 copy in {into.parent}, which could not be written"
            f" ({error}): free some space or set EPIC_SEARCH_CACHE to another folder."
        ) from error
    return into


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _sync(folder: Path) -> None:
    """Bring the folder's files to the disk, so that a rename cannot outlive their contents."""
    for file in folder.iterdir():
        _sync_entry(file)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    # Folders cannot be opened on Windows, nor need they be synced there.
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_folder(path: Path, folder: Path) -> None:
    metadata = _Metadata(path)
    architecture = metadata.get("general.architecture")
    if architecture == "llama":
        _write_llama(metadata, folder)
    else:
        _write_through_transformers(path, folder, architecture=str(architecture))
    kind, splitting = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "gpt2" and splitting in INDIVIDUAL_DIGITS:
        _write_digit_tokenizer(metadata, folder)
    else:
        _write_tokenizer_through_transformers(path, folder)


class _Metadata:
    """A GGUF file's keys and tensors; a missing key is the user's error, not ours."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self.reader = GGUFReader(path)
        except _BAD_FILE as error:
            raise UserError(
                f"{path} ({path.stat().st_size} bytes) is not a complete GGUF file ({error}):"
                " download it again, or give a folder with safetensors weights."
            ) from error

    def get(self, key: str, default: Any = None) -> Any:
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise UserError(
                f"{self.path} lacks the key {key}: use another GGUF of this model, or its safetensors folder."
            )
        return value


def _write_llama(metadata: _Metadata, folder: Path) -> None:
    import numpy as np
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    heads = {"attn_q": metadata["llama.attention.head_count"]}
    heads["attn_k"] = metadata.get("llama.attention.head_count_kv", heads["attn_q"])
    tied = all(tensor.name != "output.weight" for tensor in metadata.reader.tensors)
    names = _llama_names(metadata["llama.block_count"], tied=tied)
    _check_llama(metadata, names)
    tensors: dict[str, np.ndarray] = {}
    for tensor in metadata.reader.tensors:
        try:
            weight_OI = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{metadata.path} is quantised as {tensor.tensor_type.name}, which cannot be read:"
                " use a Q4, Q5, Q6, Q8 or F16 file."
            ) from error
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight_OI = _unpermute(weight_OI, heads=heads[kind])
        tensors[names[tensor.name]] = np.ascontiguousarray(weight_OI, dtype=np.float32)
    config = _llama_config(metadata, vocab_size=len(tensors["model.embed_tokens.weight"]), tied=tied)
    _write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _llama_names(layers: int, *, tied: bool) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face tensor name, for all tensors of a plain llama decoder."""
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not tied:
        names["output.weight"] = "lm_head.weight"
    for layer in range(layers):
        for ours, theirs in _LAYER_TENSORS.items():
            names[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names


def _check_llama(metadata: _Metadata, names: Iterable[str]) -> None:
    """Refuse what would load but compute something else: experts, biases, scaled rotary positions."""
    found, wanted = {tensor.name for tensor in metadata.reader.tensors}, set(names)
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if missing := sorted(wanted - found):
        raise UserError(f"{metadata.path} lacks the tensor {missing[0]}: download it again.")
    extra = [f"tensor {name}" for name in sorted(found - wanted)]
    if scaling != "none":
        extra.append(f"rope scaling {scaling!r}")
    if extra:
        raise UserError(
            f"{metadata.path} has the {extra[0]}, which a plain llama decoder has not, so it would give"
            " wrong vectors: use the model's safetensors folder or hub id."
        )


def _unpermute(weight_OI: "np.ndarray", *, heads: int) -> "np.ndarray":
    """Undo llama.cpp's row order, which interleaves the two rotary halves that Hugging Face keeps apart."""
    pairs = weight_OI.shape[0] // heads // 2
    weight_HP2I = weight_OI.reshape(heads, pairs, 2, *weight_OI.shape[1:])
    return weight_HP2I.swapaxes(2, 1).reshape(weight_OI.shape)


def _llama_config(metadata: _Metadata, *, vocab_size: int, tied: bool) -> dict[str, Any]:
    width, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": metadata.get("llama.rope.dimension_count", width // heads),
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": metadata.get("llama.rope.freq_base", 10000.0),
        },
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _write_digit_tokenizer(metadata: _Metadata, folder: Path) -> None:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {
        name: tokens[index]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (index := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    tokenizer = _byte_level_tokenizer(
        tokens, merges=metadata["tokenizer.ggml.merges"], types=metadata["tokenizer.ggml.token_type"]
    )
    if metadata.get("tokenizer.ggml.add_bos_token", False) and "bos" in special:
        from tokenizers.processors import TemplateProcessing

        bos = special["bos"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": token for name, token in special.items()},
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", config)


def _byte_level_tokenizer(tokens: list[str], *, merges: list[str], types: list[int]) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, token_type in zip(tokens, types, strict=True)
            if token_type == kind
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def _write_through_transformers(path: Path, folder: Path, *, architecture: str) -> None:
    """Use transformers' own reader. Its save_pretrained refuses a model read from GGUF, so save by hand."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{path} has the architecture {architecture!r}, which cannot be read from GGUF"
            f" ({_first_line(error)}): use the model's safetensors folder or hub id."
        ) from error
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    _write_json(folder / "config.json", config)
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer_through_transformers(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"The tokenizer in {path} cannot be read ({_first_line(error)}):"
            " use the model's safetensors folder or hub id."
        ) from error
    tokenizer.save_pretrained(folder)


def _first_line(error: Exception) -> str:
    return re.split(r"\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
