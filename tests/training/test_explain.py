"""Every key of a recipe can be asked for, and says what it is, what it may be and where its default comes from."""

import re

import pytest

from epic_search.errors import UserError
from epic_search.training.explain import Key, explain, recipe_keys

KEYS = {key.name: key for key in recipe_keys()}
BY_NAME = pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)


@BY_NAME
def test_every_key_is_described_in_a_sentence(key: Key) -> None:
    assert re.fullmatch(r"[A-Z`].{10,}\.", key.description), key.description


@BY_NAME
def test_a_default_that_is_a_number_says_where_it_comes_from(key: Key) -> None:
    """Published, with the source, or our choice; weights of data are factors that a user sets."""
    if (
        key.default is not None
        and key.type.endswith("number")
        and key.name.rpartition(".")[2] not in ("weight", "format")
    ):
        published = re.search(r"Published: .*\(arXiv \d{4}\.\d{5}\)", key.description)
        assert published or "Our choice" in key.description or key.default == "0", key.description


def test_what_a_key_says() -> None:
    [key] = explain("objective.temperature")
    assert (key.type, key.default, key.allowed, key.required) == ("number", "0.02", "above 0", False)
    assert "arXiv 2409.15700" in key.description
    assert (KEYS["encoder.lora.dropout"].allowed) == "at least 0 and below 1"
    assert KEYS["encoder.pooling"].allowed == '"last", "mean", "concat"'
    assert (KEYS["data.labels.files"].type, KEYS["data.labels.files"].required) == ("text or list of texts", True)
    assert KEYS["data.pairs"].type == "list of tables"
    assert (KEYS["optimizer.steps"].default, KEYS["optimizer.steps"].required) == (None, True)
    assert (KEYS["optimizer.gradient_cache"].type, KEYS["optimizer.gradient_cache"].default) == (
        "true or false",
        "false",
    )


def test_a_table_comes_with_its_keys_and_all_is_every_key() -> None:
    names = [key.name for key in explain("encoder.contextual")]
    assert names[0] == "encoder.contextual" and "encoder.contextual.gain" in names
    assert all(name.startswith("encoder.contextual") for name in names)
    assert [key.name for key in explain("all")] == list(KEYS)
    assert [key.name for key in explain("data.pairs.task")] == ["data.pairs.task"]


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("temperature", "data.temperature"),
        ("objective.temprature", "objective.temperature"),
        ("data.pair", "data.pairs"),
    ],
)
def test_an_unknown_key_gets_the_nearest(wanted: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"has no key '{wanted}'; the nearest are .*{nearest}.*--explain all"):
        explain(wanted)
