"""What several tests of training need."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.training.recipe import Recipe
from epic_search.training.trainer import StepReport, TrainResult, train


@pytest.fixture
def encoder(tiny_config: EncoderConfig) -> Encoder:
    """A trainable encoder whose LoRA layers do something, as after some steps."""
    return _trainable(tiny_config)


@pytest.fixture
def text_encoder(tiny_config: EncoderConfig) -> Encoder:
    """The same weights, to be trained on text demonstrations."""
    return _trainable(tiny_config.model_copy(update={"demonstrations": "text"}))


def _trainable(config: EncoderConfig) -> Encoder:
    torch.manual_seed(6)
    encoder = Encoder.create(config, device="cpu")
    for name, parameter in encoder.model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return encoder


class StopError(Exception):
    """Stands for a kill: raised in the middle of a run."""


Curve = list[tuple[str, float]]
Run = Callable[..., tuple[TrainResult, Curve]]


@pytest.fixture
def small_recipe(tiny_config: EncoderConfig, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of 5 steps over 24 pairs with a checkpoint after each two; tables given by name are added to its own.

    `start`: a checkpoint instead of the tiny encoder.
    """
    rows = [{"task": "find", "query": f"q {i}", "positive": f"the passage {i}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*, start: Path | None = None, **tables: dict[str, object]) -> Recipe:
        own: dict[str, dict[str, object]] = {
            "data": {"pairs": [{"files": str(tmp_path / "pairs.jsonl")}]},
            "optimizer": {"steps": 5, "batch_size": 6, "warmup_steps": 1, "precision": "float32"},
        }
        beginning = {"encoder": tiny_config.model_dump()} if start is None else {"start": str(start)}
        merged = {name: own.get(name, {}) | tables.get(name, {}) for name in {*own, *tables}}
        return Recipe.model_validate({"name": "small", "checkpoint_steps": 2, **beginning, **merged})

    return make


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train into a folder by its name: the result and the (source, loss) of each step. `stop` kills it after a step."""

    def train_into(recipe: Recipe, name: str, *, stop: int | None = None) -> tuple[TrainResult, Curve]:
        curve: Curve = []

        def report(row: StepReport) -> None:
            curve.append((row.source, row.loss))
            if row.step == stop:
                raise StopError

        if stop is not None:
            with pytest.raises(StopError):
                train(recipe, out=tmp_path / name, device="cpu", report=report)
            kept = curve[: (stop - 1) // recipe.checkpoint_steps * recipe.checkpoint_steps]
            result, rest = _go_on(recipe, tmp_path / name)
            return result, kept + rest
        return train(recipe, out=tmp_path / name, device="cpu", report=report), curve

    return train_into


def _go_on(recipe: Recipe, out: Path) -> tuple[TrainResult, Curve]:
    rest: Curve = []
    result = train(recipe, out=out, device="cpu", resume=True, report=lambda row: rest.append((row.source, row.loss)))
    return result, rest
