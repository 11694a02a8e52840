"""Typed fields of documents: declared by the user or inferred from documents, for filters and facets."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from epic_search.errors import UserError
from epic_search.index.document import Document
from epic_search.index.filters import FieldType, Value

TYPES: tuple[FieldType, ...] = get_args(FieldType)
DOCUMENT_ID = "id"  # in a filter: the document's id
MAX_INT = 2**53  # the engine compares integers as 64-bit floats
MAX_KEYWORD = 100  # characters; an inferred keyword field has no longer values
INSTANT = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)?)?")


class Field(BaseModel):
    """A field's type, and whether documents that do not fit it are refused (declared) or stored all the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: FieldType
    inferred: bool = False


def declared(specifications: Sequence[str]) -> dict[str, FieldType]:
    """Types by field from `NAME:TYPE` each; NAME is a key of the documents, or a path of keys joined by dots."""
    fields: dict[str, FieldType] = {}
    for text in specifications:
        name, _, given = text.rpartition(":")
        kind = next((kind for kind in TYPES if kind == given), None)
        if not name or kind is None:
            raise UserError(f"{text!r} declares no field; write NAME:TYPE, with TYPE one of {', '.join(TYPES)}")
        if name == DOCUMENT_ID:
            raise UserError("'id' is the document's own id, which every filter knows; give the field another name")
        if not all(name.split(".")) or '"' in name:
            raise UserError(f"{name!r} cannot name a field; use a key of the documents, or keys joined by dots")
        if fields.get(name, kind) != kind:
            raise UserError(f"field {name!r} is declared twice, as {fields[name]} and as {kind}; choose one")
        fields[name] = kind
    return fields


def inferred(documents: Iterable[Document]) -> dict[str, FieldType]:
    """The types of those keys of the documents whose values are all of one type; long texts have none."""
    values: dict[str, list[Any]] = {}
    for document in documents:
        for name, value in document.payload.items():
            values.setdefault(name, []).extend(_each(value))
    found = {name: _type_of(of_field) for name, of_field in values.items() if name != DOCUMENT_ID and '"' not in name}
    return {name: kind for name, kind in found.items() if kind is not None and "." not in name and name}


def misfit(document: Document, name: str, kind: FieldType) -> str | None:
    """The first value of a field that is not of its type, in words; None when all are."""
    value = value_of(document.payload, name)
    return next((_short(one) for one in _each(value) if not fits(one, kind)), None)


def require_fitting(wanted: Mapping[str, FieldType], known: Mapping[str, Field], documents: Iterable[Document]) -> None:
    """Raise UserError where a field is to have another type than it has, and most of the documents do not fit that."""
    sample = list(documents)
    for name, kind in wanted.items():
        if name not in known or known[name].type == kind:
            continue
        having = [read_texts(one, {name: kind}) for one in sample if value_of(one.payload, name) is not None]
        unfit = sum(misfit(one, name, kind) is not None for one in having)
        if 2 * unfit > len(having):
            raise UserError(
                f"field '{name}' is {known[name].type}, and of the first {len(having)} documents with it {unfit} do "
                f"not fit {kind}; declare another type or none (nothing was changed)"
            )


def value_of(payload: Mapping[str, Any], name: str) -> Any:
    """A document's value of a field, which may be a path of keys; None where there is none."""
    value: Any = payload
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def read_texts(document: Document, types: Mapping[str, FieldType]) -> Document:
    """The document with texts in its number and bool fields read as such: tables such as CSV have only texts.

    An empty text is no value. One that cannot be read stays, see misfit.
    """
    payload = document.payload
    for name, kind in types.items():
        if kind in ("int", "float", "bool"):
            payload = _with_value(payload, name.split("."), kind)
    if payload == document.payload:
        return document
    content = json.dumps(payload, sort_keys=True).encode()
    return replace(document, payload=payload, digest=hashlib.sha256(document.digest + content).digest())


def fits(value: Any, kind: FieldType) -> bool:
    """Whether a value of a document is of a type."""
    match kind:
        case "keyword":
            return isinstance(value, str)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "bool":
            return isinstance(value, bool)
        case "datetime":
            return isinstance(value, str) and instant(value) is not None


def typed(text: str, kind: FieldType) -> Value | None:
    """The value of a type that a text stands for, in a filter or in a table; None when it stands for none."""
    match kind:
        case "keyword":
            return text
        case "int":
            return int(text) if re.fullmatch(r"-?\d{1,16}", text, re.ASCII) and abs(int(text)) <= MAX_INT else None
        case "float":
            try:
                number = float(text)
            except ValueError:
                return None
            return number if math.isfinite(number) else None
        case "bool":
            return {"true": True, "false": False}.get(text.lower())
        case "datetime":
            return instant(text)


def instant(text: str) -> datetime | None:
    """The moment that an ISO 8601 date or date and time means, UTC where it names no zone; None for other texts."""
    if not INSTANT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def path(name: str) -> str:
    """Where the store's payload holds a field: `year` is `payload.year`, and the document's id is `id`."""
    if name == DOCUMENT_ID:
        return DOCUMENT_ID
    keys = (key if re.fullmatch(r"[\w-]+", key, re.ASCII) else f'"{key}"' for key in name.split("."))
    return ".".join(["payload", *keys])


def known(fields: Mapping[str, FieldType]) -> str:
    """The fields with their types, for an error message."""
    return ", ".join(f"{name} ({kind})" for name, kind in sorted(fields.items()))


def _with_value(payload: dict[str, Any], keys: Sequence[str], kind: FieldType) -> dict[str, Any]:
    """The payload with the texts at a path read; the same one where there are none."""
    key, *inner = keys
    value = payload.get(key)
    if inner:
        new = _with_value(value, inner, kind) if isinstance(value, dict) else value
    elif isinstance(value, list):
        new = [_read(one, kind) for one in value]
    else:
        new = _read(value, kind)
    return payload if new is value else payload | {key: new}


def _read(value: Any, kind: FieldType) -> Any:
    if not isinstance(value, str):
        return value
    found = typed(value.strip(), kind)
    return found if found is not None else value if value.strip() else None


def _type_of(values: Sequence[Any]) -> FieldType | None:
    if not values:
        return None
    order: tuple[FieldType, ...] = ("bool", "int", "float", "datetime", "keyword")
    kind = next((kind for kind in order if all(fits(value, kind) for value in values)), None)
    return None if kind == "keyword" and max(map(len, values)) > MAX_KEYWORD else kind


def _each(value: Any) -> Iterator[Any]:
    """The values of a field: of a list its items; null is none."""
    for one in value if isinstance(value, list) else [value]:
        if one is not None:
            yield one


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
