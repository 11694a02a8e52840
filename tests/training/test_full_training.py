"""Training the backbone's own weights: what moves, that it is saved whole, and that a stopped run goes on exactly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.checkpoint import find
from epic_search.encoder.config import EncoderConfig, SoftTokenConfig
from epic_search.encoder.export import export
from epic_search.errors import UserError
from epic_search.training.learner import make_optimizer
from epic_search.training.recipe import Recipe

TEXTS = ["one text", "another", "and a third, longer than the two before"]
FULL = {"backbone": "layers", "learning_rate": 1e-3}
EMBEDDINGS = "embed_tokens.weight"


def whole(tiny_config: EncoderConfig, **changes: object) -> dict[str, object]:
    """The tiny encoder without LoRA layers."""
    return tiny_config.model_copy(update={"lora": None, **changes}).model_dump()


def prompted(encoder: Encoder) -> np.ndarray:
    prompt = encoder.prompt(task="find", demonstrations=[Demonstration(query="a", passage="b")])
    return encoder.encode_queries(TEXTS, prompt=prompt)


@pytest.mark.parametrize("which", ["layers", "all"])
def test_weights_move_and_a_stopped_run_continues_exactly(
    small_recipe: Callable[..., Recipe], run: Callable, tiny_config: EncoderConfig, which: str
) -> None:
    recipe = small_recipe(encoder=whole(tiny_config), optimizer=FULL | {"backbone": which})
    result, curve = run(recipe, "whole")
    again, same = run(recipe, "parts", stop=3)
    assert same == curve
    mine, theirs = (load_file(each.encoder / "backbone" / "model.safetensors") for each in (again, result))
    before = load_file(Path(tiny_config.backbone) / "model.safetensors")
    assert any("layers.1." in name for name in mine) and not any("layers.2." in name for name in mine), "2 of 3 layers"
    for name, weight in mine.items():
        np.testing.assert_array_equal(weight, theirs[name])
        moved = np.abs(weight - before[f"model.{name}"]).max()
        assert (moved > 0) == (which == "all" or name != EMBEDDINGS), name
        assert weight.dtype == np.float32 and moved < 0.02


def test_what_is_loaded_is_what_was_trained(
    small_recipe: Callable[..., Recipe], run: Callable, tiny_config: EncoderConfig, tmp_path: Path
) -> None:
    recipe = small_recipe(encoder=whole(tiny_config), optimizer=FULL)
    result, _ = run(recipe, "run")
    found = find(str(result.encoder))
    trained = Encoder.create(found.config, start=result.encoder, device="cpu", backbone="layers")
    loaded = Encoder.load(result.encoder, device="cpu", dtype="float32")
    np.testing.assert_allclose(loaded.encode_passages(TEXTS), trained.encode_passages(TEXTS), atol=1e-6)
    assert recipe.encoder is not None
    untrained = Encoder.create(recipe.encoder, device="cpu").encode_passages(TEXTS)
    assert (loaded.encode_passages(TEXTS) * untrained).sum(axis=1).max() < 0.999

    # It needs no other backbone, its fingerprint follows its weights, and it is exported as it is.
    assert found.config.layers is None and found.config.lora is None and found.backbone == result.encoder / "backbone"
    other, _ = run(recipe.model_copy(update={"seed": 8}), "other")
    assert found.fingerprint() != find(str(other.encoder)).fingerprint()
    made = export(result.encoder, out=tmp_path / "merged", format="merged")
    opened = Encoder.load(made.folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(prompted(opened), prompted(loaded), atol=1e-6)
    card = (made.folder / "README.md").read_text()
    assert "projectors and the backbone's weights" in card and str(tmp_path) not in card
    with pytest.raises(UserError, match="holds its backbone itself"):
        export(result.encoder, out=tmp_path / "adapter", format="adapter")


def test_lora_weights_of_the_start_are_merged(
    small_recipe: Callable[..., Recipe], run: Callable, tiny_encoder_folder: Path
) -> None:
    start = find(str(tiny_encoder_folder))
    merged = Encoder.create(start.config, start=start.folder, device="cpu", backbone="layers")
    expected = Encoder.load(tiny_encoder_folder, device="cpu", dtype="float32").encode_passages(TEXTS)
    np.testing.assert_allclose(merged.encode_passages(TEXTS), expected, atol=1e-5)
    slow = FULL | {"learning_rate": 1e-6, "projector_learning_rate": 1e-9}
    onward = small_recipe(start=tiny_encoder_folder, optimizer=slow)
    result, curve = run(onward, "run")
    assert run(onward, "parts", stop=4)[1] == curve
    nearly = Encoder.load(result.encoder, device="cpu", dtype="float32").encode_passages(TEXTS)
    np.testing.assert_allclose(nearly, expected, atol=1e-3)


def test_products_in_bfloat16_and_weights_in_float32(
    small_recipe: Callable[..., Recipe], run: Callable, tiny_config: EncoderConfig
) -> None:
    settings = {"gradient_cache": True, "token_budget": 64}
    float32, bfloat16 = (
        run(small_recipe(encoder=whole(tiny_config), optimizer=FULL | settings | {"precision": precision}), precision)
        for precision in ("float32", "bfloat16")
    )
    np.testing.assert_allclose([loss for _, loss in bfloat16[1]], [loss for _, loss in float32[1]], rtol=0.1)
    weights = load_file(bfloat16[0].encoder / "backbone" / "model.safetensors")
    coarse = torch.from_numpy(weights["layers.0.mlp.up_proj.weight"])
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, coarse.bfloat16().float())


def test_mistakes(small_recipe: Callable[..., Recipe], tiny_config: EncoderConfig) -> None:
    with pytest.raises(ValueError, match=r"trains the weights that \[encoder\.lora\] would add to"):
        small_recipe(optimizer=FULL)
    soft_tokens = SoftTokenConfig(projector="rescale")
    frozen = whole(tiny_config, contextual=None, pooling="last", soft_tokens=soft_tokens)
    recipe = small_recipe(encoder=frozen)
    assert recipe.encoder is not None
    with pytest.raises(UserError, match="the recipe trains nothing"):
        make_optimizer(Encoder.create(recipe.encoder, device="cpu"), recipe.optimizer)
