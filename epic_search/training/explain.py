"""Every key of a recipe: its type, its default, what is allowed, what it does and where its default comes from.

The classes of `recipe.py` and `epic_search/encoder/config.py` say it all: the description of a key is that of its
field, the description of a table is the docstring of its class.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from epic_search.errors import UserError
from epic_search.training.recipe import Recipe

ALL = "all"
TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Key:
    """A key with its tables in front: `objective.temperature`.

    `default` is written as in TOML; None for a key without one, which is `required` or may be left out. `allowed` is
    "" where every value of the type is.
    """

    name: str
    type: str
    required: bool
    default: str | None
    allowed: str
    description: str


def explain(wanted: str) -> list[Key]:
    """The key of that name, a table and all its keys, or with "all" every key there is.

    Raises UserError with the nearest names where there is none.
    """
    keys = list(recipe_keys())
    found = [key for key in keys if wanted == ALL or f"{key.name}.".startswith(f"{wanted}.")]
    if not found:
        near = ", ".join(_nearest(wanted, [key.name for key in keys]))
        raise UserError(f"a recipe has no key '{wanted}'; the nearest are {near}, and --explain {ALL} shows every key")
    return found


def recipe_keys(model: type[BaseModel] = Recipe, tables: str = "") -> Iterator[Key]:
    """The keys of a table in the order of its class, each table before its own keys. `tables`: what stands in front."""
    for name, field in model.model_fields.items():
        table = _table(field.annotation)
        default = None if field.is_required() or table else field.default
        yield Key(
            name=f"{tables}{name}",
            type=_type(field.annotation),
            required=field.is_required(),
            default=None if default is None else json.dumps(default),
            allowed=_allowed(field),
            description=" ".join((field.description or (table and table.__doc__) or "").split()),
        )
        if table is not None:
            yield from recipe_keys(table, f"{tables}{name}.")


def _table(annotation: Any) -> type[BaseModel] | None:
    """The class of a table or, in a list, of each of its tables; None for a value."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for part in get_args(annotation) if (table := _table(part)) is not None), None)


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not type(None)]
    if origin is Annotated:
        return _type(parts[0])
    if origin is list:
        return f"list of {_type(parts[0])}s"
    if origin is dict or _table(annotation) is annotation:
        return "table"
    if origin is Literal:
        return "text"
    return TYPES[annotation] if origin is None else " or ".join(map(_type, parts))


def _allowed(field: FieldInfo) -> str:
    limits = [
        f"{words} {getattr(limit, sign):g}"
        for limit in field.metadata
        for sign, words in LIMITS.items()
        if hasattr(limit, sign)
    ]
    return " and ".join(limits) or ", ".join(_choices(field.annotation))


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [json.dumps(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) if get_origin(annotation) is not dict for choice in _choices(part)]


def _nearest(wanted: str, names: Sequence[str]) -> list[str]:
    """The three names most like it, as a whole or in their last part."""

    def likeness(name: str) -> float:
        last, own = wanted.rpartition(".")[2], name.rpartition(".")[2]
        return max(SequenceMatcher(None, wanted, name).ratio(), SequenceMatcher(None, last, own).ratio())

    return sorted(names, key=likeness, reverse=True)[:3]
