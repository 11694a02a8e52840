"""Finding, reading and naming encoders on disk, and what is said when they are not whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_search.encoder import Encoder, Prompt
from epic_search.encoder.backbone import load_backbone
from epic_search.encoder.checkpoint import find, registry
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.lora import merge_lora
from epic_search.encoder.lora_layers import add_lora
from epic_search.errors import UserError


def test_merging_lora_equals_pefts_own_merge(
    tiny_encoder_folder: Path, tiny_backbone_folder: Path, tiny_config: EncoderConfig
) -> None:
    merged = load_backbone(tiny_backbone_folder, layers=2, dtype=torch.float32)
    merge_lora(merged, tiny_encoder_folder / "lora")
    apart = load_backbone(tiny_backbone_folder, layers=2, dtype=torch.float32)
    add_lora(apart, tiny_config.lora, folder=tiny_encoder_folder / "lora")
    changed = 0
    for name, module in apart.named_modules():
        if hasattr(module, "lora_A"):
            module.merge(safe_merge=True)
            mine = merged.get_submodule(name).weight
            torch.testing.assert_close(mine, module.get_base_layer().weight, atol=1e-6, rtol=1e-5)
            changed += 1
    assert changed == 2 * 7, "LoRA on all seven linear layers of both blocks"


def test_peft_reads_the_lora_folder(tiny_encoder_folder: Path, tiny_backbone_folder: Path) -> None:
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(
        load_backbone(tiny_backbone_folder, layers=2, dtype=torch.float32), str(tiny_encoder_folder / "lora")
    )
    theirs = wrapped.merge_and_unload(safe_merge=True)
    mine = load_backbone(tiny_backbone_folder, layers=2, dtype=torch.float32)
    merge_lora(mine, tiny_encoder_folder / "lora")
    for name, weight in mine.named_parameters():
        torch.testing.assert_close(weight, theirs.get_parameter(name), atol=1e-6, rtol=1e-5)


def test_lora_of_another_backbone_is_refused(
    tiny_encoder_folder: Path, tiny_backbone_folder: Path, tiny_config: EncoderConfig
) -> None:
    one_layer = load_backbone(tiny_backbone_folder, layers=1, dtype=torch.float32)
    with pytest.raises(UserError, match=r"has no linear layer layers\.1"):
        merge_lora(one_layer, tiny_encoder_folder / "lora")
    with pytest.raises(UserError, match="do not fit this model"):
        add_lora(one_layer, tiny_config.lora, folder=tiny_encoder_folder / "lora")


def test_fingerprint_follows_weights_and_configuration(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    original = find(str(tiny_encoder_folder)).fingerprint()
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "copy")
    assert find(str(copy)).fingerprint() == original, "where a checkpoint lies does not matter"
    fields = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps({**fields, "max_length": 32}))
    assert find(str(copy)).fingerprint() != original
    (copy / "encoder.json").write_text(json.dumps(fields))
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "lora" / "adapter_model.safetensors")
    save_file({name: value + 1e-3 for name, value in state.items()}, copy / "lora" / "adapter_model.safetensors")
    assert find(str(copy)).fingerprint() != original


def test_keys_that_came_later_change_no_older_fingerprint() -> None:
    """The fingerprint is over all keys: a new one must be left out where it says what was so before it."""
    folder = registry()["epic-mini"]
    assert EncoderConfig.load(folder).model_dump(mode="json") == json.loads((folder / "encoder.json").read_text())


def test_a_plain_language_model_is_an_encoder(tiny_backbone_folder: Path) -> None:
    encoder = Encoder.load(tiny_backbone_folder, device="cpu", dtype="float32")
    assert encoder.encode_passages(["a", "b"]).shape == (2, 32)
    assert encoder.config.contextual is None


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("projectors.safetensors", "no projectors.safetensors"),
        ("lora/adapter_model.safetensors", "no lora/adapter_model"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(
    tiny_encoder_folder: Path, tmp_path: Path, remove: str, message: str
) -> None:
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "copy")
    (copy / remove).unlink()
    with pytest.raises(UserError, match=message):
        Encoder.load(copy)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no weights"):
        Encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "concat", "contextual": None}, "needs a \\[contextual\\] table"),
        ({"layer": 3}, "layer: Extra inputs"),
        ({"layers": 0}, "layers: Input should be greater"),
        ({"format": 99}, "format 99 is newer"),
        ({"soft_tokens": {"projector": "identity"}}, "twice as wide"),
    ],
)
def test_a_wrong_configuration_is_named(tiny_encoder_folder: Path, tmp_path: Path, change: dict, message: str) -> None:
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "copy")
    fields = {**json.loads((copy / "encoder.json").read_text()), **change}
    (copy / "encoder.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    with pytest.raises(UserError, match=message):
        Encoder.load(copy)


def test_more_layers_than_there_are(tiny_config: EncoderConfig) -> None:
    with pytest.raises(UserError, match=r"layers = 9, but .* has only 3"):
        Encoder.create(tiny_config.model_copy(update={"layers": 9}), device="cpu")


def test_a_bidirectional_model_is_no_backbone(tiny_contextual_folder: Path) -> None:
    with pytest.raises(UserError, match="must be a decoder-only language model"):
        Encoder.load(tiny_contextual_folder)


def test_a_contextual_encoder_must_be_bert(tiny_config: EncoderConfig, tiny_backbone_folder: Path) -> None:
    contextual = tiny_config.contextual.model_copy(update={"encoder": str(tiny_backbone_folder)})
    with pytest.raises(UserError, match="holds a llama model; a Contextual encoder must be a BERT or an MPNet model"):
        Encoder.create(tiny_config.model_copy(update={"contextual": contextual}), device="cpu")


@pytest.mark.parametrize(("argument", "value"), [("device", "tpu"), ("dtype", "float8")])
def test_unknown_device_or_dtype(tiny_encoder_folder: Path, argument: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{argument} '{value}' is not one of auto"):
        Encoder.load(tiny_encoder_folder, **{argument: value})


def test_prompts_survive_the_disk(tiny_encoder: Encoder, tmp_path: Path) -> None:
    from epic_search.encoder import Demonstration

    prompt = tiny_encoder.prompt(task="née", demonstrations=[Demonstration(query="q", passage="p\n")])
    prompt.save(tmp_path / "prompt.safetensors")
    loaded = Prompt.load(tmp_path / "prompt.safetensors")
    assert (loaded.task, loaded.demonstrations) == (prompt.task, prompt.demonstrations)
    np.testing.assert_array_equal(loaded.vectors_SE, prompt.vectors_SE)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all, whatever it says"])
def test_a_damaged_prompt_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "prompt.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        Prompt.load(path)


def test_code_from_a_model_folder_is_never_run(tmp_path: Path, tiny_backbone_folder: Path) -> None:
    folder = shutil.copytree(tiny_backbone_folder, tmp_path / "remote")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": {"AutoConfig": "evil.Config"}}))
    with pytest.raises(UserError, match="no model configuration that transformers can read"):
        Encoder.load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_folder_of_a_run_stands_for_its_encoder(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    shutil.copytree(tiny_encoder_folder, tmp_path / "run" / "encoder")
    found = find(str(tmp_path / "run"))
    assert found.fingerprint() == find(str(tiny_encoder_folder)).fingerprint()
    assert found.reference == str(tmp_path / "run" / "encoder")
