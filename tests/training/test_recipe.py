"""What an objective asks for must be there in the encoder, of the recipe or of the checkpoint it starts from."""

import pytest

from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError
from epic_search.training.compatibility import check_objective
from epic_search.training.recipe import Objective


def test_a_contextual_teacher_needs_a_contextual_encoder(tiny_config: EncoderConfig) -> None:
    without = tiny_config.model_copy(update={"contextual": None, "pooling": "last"})
    taught = Objective(distill_weight=1.0)
    check_objective(taught, tiny_config)
    check_objective(Objective(), without)
    with pytest.raises(UserError, match="has no Contextual encoder; name another teacher"):
        check_objective(taught, without)
    check_objective(taught.model_copy(update={"teacher": "st:somewhere"}), without)


def test_a_loss_of_halves_needs_halves(tiny_config: EncoderConfig) -> None:
    assert tiny_config.contextual is not None
    residual = tiny_config.contextual.model_copy(update={"residual": True})
    mixed = tiny_config.model_copy(update={"contextual": residual})
    halves = Objective(half_weight=0.5)
    check_objective(halves, tiny_config)
    with pytest.raises(UserError, match="the residual mixes them; set it to 0"):
        check_objective(halves, mixed)
