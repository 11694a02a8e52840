"""Training vectors to be cut: the losses of prefixes, and what a run leaves behind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from epic_search.encoder import Encoder
from epic_search.encoder.checkpoint import find
from epic_search.encoder.config import EncoderConfig
from epic_search.training.losses import with_parts
from epic_search.training.recipe import Objective, Recipe

TEXTS = ["one text", "another", "and a third, longer than the two before"]


def test_the_loss_is_the_mean_over_the_widths(tiny_config: EncoderConfig) -> None:
    torch.manual_seed(0)
    query_QE, passage_PE = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    everybody = torch.ones(6, 6, dtype=torch.bool)

    def info_nce(width: int) -> torch.Tensor:
        scores_QP = F.cosine_similarity(query_QE[:, None, :width], passage_PE[None, :, :width], dim=2)
        return F.cross_entropy(scores_QP / 0.5, torch.arange(6))

    objective = Objective(temperature=0.5, false_negative_margin=None)
    config = tiny_config.model_copy(update={"matryoshka": [2, 4]})
    found = with_parts(info_nce(8), query_QE, passage_PE, everybody, everybody[0], objective, config)
    torch.testing.assert_close(found, (info_nce(8) + info_nce(4) + info_nce(2)) / 3)
    alone = with_parts(info_nce(8), query_QE, passage_PE, everybody, everybody[0], objective, tiny_config)
    torch.testing.assert_close(alone, info_nce(8))


def test_widths_of_a_run(small_recipe: Callable[..., Recipe], run: Callable, tiny_encoder_folder: Path) -> None:
    """From a checkpoint with one half after the other; then on from its result, without naming the widths again."""
    recipe = small_recipe(start=tiny_encoder_folder, objective={"matryoshka": [32, 16, 16]})
    result, curve = run(recipe, "whole")
    again, same = run(recipe, "parts", stop=3)
    assert same == curve
    assert find(str(result.encoder)).config.matryoshka == [16, 32]
    small, resumed = (Encoder.load(each.encoder, device="cpu", dtype="float32", dim=16) for each in (result, again))
    np.testing.assert_array_equal(small.encode_passages(TEXTS), resumed.encode_passages(TEXTS))
    assert small.encode_passages(TEXTS).shape == (3, 16)
    onward, _ = run(small_recipe(start=result.encoder, optimizer={"steps": 1}), "onward")
    assert find(str(onward.encoder)).config.matryoshka == [16, 32]


def test_widths_stand_in_one_place(small_recipe: Callable[..., Recipe], tiny_config: EncoderConfig) -> None:
    with pytest.raises(ValueError, match=r"give objective\.matryoshka"):
        small_recipe(encoder=tiny_config.model_copy(update={"matryoshka": [16]}).model_dump())
