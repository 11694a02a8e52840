"""Recipes as files: one that extends another, globs of data files, and variables of the environment in them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from epic_search.encoder.config import first_problem, read_toml
from epic_search.errors import UserError
from epic_search.training.recipe import DATA_VARIABLE, DEFAULT_DATA, Recipe


def load(path: Path) -> Recipe:
    """Read and check a recipe; raises UserError with the file and the place of the first mistake."""
    files = _chain(path)
    recipe: dict[str, Any] = {}
    for table in reversed(files.values()):
        recipe = _merged(recipe, table)
    try:
        return Recipe.model_validate(recipe)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        guilty = max(files, key=lambda file: _known(files[file], place))
        raise UserError(f"the recipe {guilty} is wrong at {first_problem(error)}") from error


def _chain(path: Path) -> dict[Path, dict[str, Any]]:
    """A recipe and those it extends, nearest first, without the key that says so."""
    files = {path: read_toml(path, what="recipe")}
    while (base := files[path].pop("extends", None)) is not None:
        if not isinstance(base, str) or not (path.parent / base).is_file():
            raise UserError(f"the recipe {path} extends {base!r}, which is no file in {path.parent}; name one there")
        path = path.parent / base
        if path.resolve() in map(Path.resolve, files):
            raise UserError(f"a recipe cannot extend itself: {' -> '.join(map(str, [*files, path]))}")
        files[path] = read_toml(path, what="recipe")
    return files


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    tables = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | tables


def _known(table: Any, place: Sequence[str | int]) -> int:
    """How many steps of the way to a place exist in a file."""
    for taken, step in enumerate(place):
        try:
            table = table[step]
        except (KeyError, IndexError, TypeError):
            return taken
    return len(place)


def expand(patterns: str | list[str]) -> list[Path]:
    """The files of globs, with ${NAME} and ${NAME:-default} replaced from the environment.

    EPIC_SEARCH_DATA has a default of its own, so that recipes can name it plainly. Raises UserError for a glob without
    files and for a variable that is not set.
    """
    return [path for pattern in ([patterns] if isinstance(patterns, str) else patterns) for path in _glob(pattern)]


def _glob(pattern: str) -> list[Path]:
    path = Path(re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", _variable, pattern)).expanduser()
    root = Path(path.anchor) if path.is_absolute() else Path()
    files = sorted(root.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))
    if not files:
        advice = f"set {DATA_VARIABLE} or correct the path" if DATA_VARIABLE in pattern else "correct the path"
        where = "" if path.is_absolute() else f" from {Path.cwd()}"
        raise UserError(f"no file matches {path}{where}; {advice}")
    return files


def _variable(match: re.Match[str]) -> str:
    name, fallback = match[1], match[2]
    default = DEFAULT_DATA if name == DATA_VARIABLE else None
    found = os.environ.get(name, fallback if fallback is not None else default)
    if found is None:
        raise UserError(f"{match[0]} names the environment variable {name}, which is not set")
    return found
