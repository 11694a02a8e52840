"""Recipes that extend others, and the grid made of them: five methods that differ in nothing else."""

from pathlib import Path
from typing import Any

import pytest

from epic_search.errors import UserError
from epic_search.training import recipe_files as recipes
from epic_search.training.recipe import Recipe

GRID = Path(__file__).parents[2] / "train" / "recipes" / "grid"
METHODS: dict[str, dict[str, Any]] = {
    "a-plain": {"objective.demonstrations": 0},
    "b-text": {"encoder.demonstrations": "text", "objective.contrast_without": 0.0},
    "c-epic": {},
    "d-causal2vec": {
        "objective.demonstrations": 0,
        "encoder.pooling": "concat",
        "encoder.contextual": "all-minilm-l6-v2",
    },
    "e-causal2vec-epic": {"encoder.pooling": "concat", "encoder.contextual": "all-minilm-l6-v2"},
}
BASE = """
name = "base"
[encoder]
name = "e"
backbone = "b"
[encoder.lora]
rank = 4
[data]
pairs = [{files = "a"}, {files = "b"}]
[optimizer]
steps = 5
"""


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def method_keys(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys that make a method, and everything else."""
    fields = recipe.model_dump()
    del fields["name"]
    encoder, objective = fields["encoder"], fields["objective"]
    contextual = encoder.pop("contextual")
    keys = {
        "encoder.demonstrations": encoder.pop("demonstrations", "soft"),
        "encoder.pooling": encoder.pop("pooling"),
        "encoder.contextual": contextual and contextual["encoder"],
        "objective.demonstrations": objective.pop("demonstrations"),
        "objective.contrast_without": objective.pop("contrast_without"),
    }
    return keys, fields


def test_the_grid_differs_in_nothing_but_the_method() -> None:
    loaded = {path.stem: recipes.load(path) for path in GRID.glob("*.toml") if path.stem != "base"}
    assert loaded.keys() == METHODS.keys()
    usual = {
        "encoder.demonstrations": "soft",
        "encoder.pooling": "last",
        "encoder.contextual": None,
        "objective.demonstrations": 5,
        "objective.contrast_without": 1.0,
    }
    [*others] = [method_keys(recipe)[1] for recipe in loaded.values()]
    assert all(other == others[0] for other in others)
    for name, recipe in loaded.items():
        assert recipe.name == name
        assert method_keys(recipe)[0] == usual | METHODS[name]


def test_a_knob_changes_one_thing() -> None:
    knobs = {path.stem: flat(recipes.load(path).model_dump()) for path in (GRID / "knobs").glob("*.toml")}
    base = knobs.pop("base")
    for name, knob in knobs.items():
        changed = {key for key in base | knob if base.get(key) != knob.get(key)}
        assert len(changed) == 2 and "name" in changed and knob["name"] == f"knob-{name}", (name, changed)


def flat(tables: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Every value by the whole name of its key."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        found |= flat(value, f"{place}{key}.") if isinstance(value, dict) else {place + key: value}
    return found


def test_the_grid_learns_from_the_data_of_the_default_encoder() -> None:
    mini, grid = recipes.load(GRID.parent / "epic-mini-1.toml"), recipes.load(GRID / "c-epic.toml")
    assert grid.data == mini.data and grid.seed == mini.seed
    assert grid.encoder is not None and mini.encoder is not None
    assert (grid.encoder.backbone, grid.encoder.layers) == (mini.encoder.backbone, mini.encoder.layers)
    assert grid.encoder.lora == mini.encoder.lora


def test_tables_are_merged_and_all_else_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", BASE)
    write(tmp_path, "middle.toml", 'extends = "base.toml"\nname = "middle"\n[encoder.lora]\nalpha = 9\n')
    (tmp_path / "further").mkdir()
    path = write(
        tmp_path / "further",
        "last.toml",
        'extends = "../middle.toml"\n[data]\npairs = [{files = "c"}]\n[optimizer]\nbatch_size = 3\n',
    )
    recipe = recipes.load(path)
    assert recipe.name == "middle"
    assert recipe.encoder is not None and recipe.encoder.lora is not None
    assert (recipe.encoder.lora.rank, recipe.encoder.lora.alpha) == (4, 9)
    assert [pairs.files for pairs in recipe.data.pairs] == ["c"]
    assert (recipe.optimizer.steps, recipe.optimizer.batch_size) == (5, 3)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe, "a run keeps the whole recipe"


@pytest.mark.parametrize(
    ("base", "own", "message"),
    [
        ("steps = 5", 'name = "x"', r"recipe \S*/base.toml is wrong at steps: Extra"),
        ("", "[encoder.lora]\nranks = 5", r"recipe \S*/own.toml is wrong at encoder.lora.ranks: Extra"),
        ("", "[optimizer]\nsteps = 0", r"recipe \S*/own.toml is wrong at optimizer.steps: Input should be"),
        ("", '[encoder]\npooling = "concat"', r"recipe \S*/own.toml is wrong at encoder: pooling 'concat' joins"),
        ("", "[data]\npairs = [{file = 'x'}]", r"recipe \S*/own.toml is wrong at data.pairs.0"),
        ("", 'start = "epic-mini"', r"recipe \S*/own.toml is wrong at give exactly one of start"),
        ("", "[[", r"recipe \S*/own.toml is not valid TOML"),
        ("= 3", "", r"recipe \S*/base.toml is not valid TOML"),
        ('extends = "own.toml"', "", r"cannot extend itself: \S*/own.toml -> \S*/base.toml -> \S*/own.toml"),
        ('extends = "other.toml"', "", r"recipe \S*/base.toml extends 'other.toml', which is no file in"),
        ("extends = 3", "", r"recipe \S*/base.toml extends 3, which is no file in"),
    ],
)
def test_a_mistake_is_named_with_the_file_it_stands_in(tmp_path: Path, base: str, own: str, message: str) -> None:
    write(tmp_path, "base.toml", base + BASE)
    path = write(tmp_path, "own.toml", f'extends = "base.toml"\n{own}')
    with pytest.raises(UserError, match=message):
        recipes.load(path)
