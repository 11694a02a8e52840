"""What an objective asks for must be there in the encoder, of the recipe or of the checkpoint it starts from."""

import pytest
from pydantic import ValidationError

from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError
from epic_search.training.compatibility import check_objective
from epic_search.training.recipe import Objective, Recipe


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


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".hidden", "x" * 101])
def test_a_run_is_named_as_its_folder_can_be(name: str) -> None:
    table = {"data": {"pairs": [{"files": "a.jsonl"}]}, "start": "epic-mini", "optimizer": {"steps": 1}}
    assert Recipe.model_validate(table | {"name": "epic mini-1.5_b"}).name == "epic mini-1.5_b"
    with pytest.raises(ValidationError, match="cannot name a run"):
        Recipe.model_validate(table | {"name": name})
