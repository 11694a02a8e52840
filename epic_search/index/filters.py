"""Filters: conditions on the fields of stored points, as values that every store translates for its engine.

`str` of a filter is its text in the grammar of filter_parser.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

FieldType = Literal["keyword", "int", "float", "bool", "datetime"]
Value = str | int | float | bool | datetime
Comparison = Literal["=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Compare:
    """The field has a value that compares so; of a list, one of its values does. Only numbers and dates have an order.

    The value's Python type is that of the field (int, float, bool, an aware datetime; str for a keyword).
    """

    field: str
    comparison: Comparison
    value: Value

    def __str__(self) -> str:
        return f"{_name(self.field)} {self.comparison} {_literal(self.value)}"


@dataclass(frozen=True, slots=True)
class In:
    """The field has one of these values."""

    field: str
    values: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{_name(self.field)} in ({', '.join(map(_literal, self.values))})"


@dataclass(frozen=True, slots=True)
class Exists:
    """The field has a value: it is there, and neither null nor an empty list."""

    field: str

    def __str__(self) -> str:
        return f"{_name(self.field)} exists"


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold, also because the field is not there."""

    part: "Filter"

    def __str__(self) -> str:
        if isinstance(self.part, Compare) and self.part.comparison == "=":
            return f"{_name(self.part.field)} != {_literal(self.part.value)}"
        return f"not {_inner(self.part)}"


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold."""

    parts: tuple["Filter", ...]

    def __str__(self) -> str:
        return " and ".join(map(_inner, self.parts))


@dataclass(frozen=True, slots=True)
class Or:
    """At least one part holds."""

    parts: tuple["Filter", ...]

    def __str__(self) -> str:
        return " or ".join(map(_inner, self.parts))


Filter = Compare | In | Exists | Not | And | Or


def renamed(filter: Filter, name: Callable[[str], str]) -> Filter:
    """The same filter with each field called `name(field)`, as its path in a store's payload is."""
    match filter:
        case Compare(field, comparison, value):
            return Compare(name(field), comparison, value)
        case In(field, values):
            return In(name(field), values)
        case Exists(field):
            return Exists(name(field))
        case Not(part):
            return Not(renamed(part, name))
        case And(parts):
            return And(tuple(renamed(part, name) for part in parts))
        case Or(parts):
            return Or(tuple(renamed(part, name) for part in parts))


RESERVED = {"and", "or", "not", "in", "exists"}
WORD = re.compile(r"""[^\s()=!<>,'"\\]+""")
RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def as_qdrant(filter: Filter) -> dict[str, Any]:
    """The filter in the JSON of Qdrant's REST interface, which both the server and the embedded store read."""
    return {"must": [_condition(filter)]}


def _condition(filter: Filter) -> dict[str, Any]:
    match filter:
        case Compare(field, "=", str() | bool() | int() as value):
            return {"key": field, "match": {"value": value}}
        case Compare(field, "=", value):  # the engine matches no floats, and dates only as instants
            return {"key": field, "range": {"gte": _plain(value), "lte": _plain(value)}}
        case Compare(field, comparison, value):
            return {"key": field, "range": {RANGES[comparison]: _plain(value)}}
        case In(field, values) if all(isinstance(value, str) for value in values):
            return {"key": field, "match": {"any": list(values)}}
        case In(field, values):
            return {"should": [_condition(Compare(field, "=", value)) for value in values]}
        case Exists(field):
            return {"must_not": [{"is_empty": {"key": field}}]}
        case Not(part):
            return {"must_not": [_condition(part)]}
        case And(parts):
            return {"must": [_condition(part) for part in parts]}
        case Or(parts):
            return {"should": [_condition(part) for part in parts]}


def _plain(value: Value) -> str | int | float:
    return value.isoformat() if isinstance(value, datetime) else value


def _inner(filter: Filter) -> str:
    return f"({filter})" if isinstance(filter, And | Or) else str(filter)


def _name(field: str) -> str:
    return field if WORD.fullmatch(field) and field.lower() not in RESERVED else _quoted(field)


def _literal(value: Value) -> str:
    match value:
        case str():
            return _quoted(value)
        case bool():
            return str(value).lower()
        case datetime():
            return value.isoformat()
        case _:
            return repr(value)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
