"""The moving average: exact, what the finished encoder holds, and the same after a stop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.training.average import MovingAverage
from epic_search.training.learner import make_optimizer, trained
from epic_search.training.recipe import Recipe

FILES = ("projectors.safetensors", "lora/adapter_model.safetensors")


def test_the_average_of_a_few_steps() -> None:
    weights = torch.zeros(2)
    average = MovingAverage([weights], decay=0.5)
    for step, value in enumerate((8.0, 4.0, 1.0), start=1):
        weights.fill_(value)
        average.update(step)
    average.put_in_place()
    expected = (8 * 0.125 + 4 * 0.25 + 1 * 0.5) / (0.125 + 0.25 + 0.5)
    torch.testing.assert_close(weights, torch.full((2,), expected))


def test_the_finished_encoder_holds_the_average(
    small_recipe: Callable[..., Recipe], run: Callable, tiny_config: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[np.ndarray]] = []
    update = MovingAverage.update

    def watched(self: MovingAverage, step: int) -> None:
        update(self, step)
        steps.append([parameter.detach().numpy().copy() for parameter in self._parameters])

    monkeypatch.setattr(MovingAverage, "update", watched)
    settings = {"learning_rate": 1e-2, "projector_learning_rate": 1e-2}
    recipe = small_recipe(optimizer={"ema": 0.7, **settings})
    result, curve = run(recipe, "average")
    plain, same = run(small_recipe(optimizer=settings), "plain")
    assert same == curve, "training itself does not change"
    shares = np.array([0.7**4, 0.7**3, 0.7**2, 0.7, 1.0]) / sum(0.7**i for i in range(5))
    expected = [sum(share * w for share, w in zip(shares, each, strict=True)) for each in zip(*steps, strict=True)]

    def weights(folder: Path) -> list[np.ndarray]:
        encoder = Encoder.create(tiny_config, start=folder, device="cpu")
        return [parameter.detach().numpy() for parameter in trained(make_optimizer(encoder, recipe.optimizer))]

    for folder, those in (
        (result.encoder, expected),
        (result.encoder.parent / "state-0000005", steps[-1]),
        (plain.encoder, steps[-1]),
    ):
        for mine, theirs in zip(weights(folder), those, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_stopped_run_continues_exactly(small_recipe: Callable[..., Recipe], run: Callable) -> None:
    recipe = small_recipe(optimizer={"ema": 0.9})
    result, curve = run(recipe, "whole")
    again, same = run(recipe, "parts", stop=4)
    assert same == curve
    for file in FILES:
        mine, theirs = load_file(again.encoder / file), load_file(result.encoder / file)
        for name in theirs:
            np.testing.assert_array_equal(mine[name], theirs[name])
