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
from epic_search.index.filters import FieldType

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
    value: Any = document.payload
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return next((_short(one) for one in _each(value) if not fits(one, kind)), None)


def with_types(document: Document, types: Mapping[str, FieldType]) -> Document:
    """The document with the values that its texts in these fields stand for: a CSV file holds nothing but texts.

    What stands for no value of its type stays as it is. Another value is another version of the document.
    """
    texts = {name: text for name in types if isinstance(text := document.payload.get(name), str)}
    values = {name: value for name, text in texts.items() if (value := _meant(text, types[name])) is not None}
    if not values:
        return document
    digest = hashlib.sha256(document.digest + json.dumps(values, sort_keys=True).encode()).digest()
    return replace(document, payload=document.payload | values, digest=digest)


def _meant(text: str, kind: FieldType) -> int | float | bool | None:
    text = text.strip()
    match kind:
        case "int" if re.fullmatch(r"[+-]?\d{1,16}", text, re.ASCII):
            return int(text)
        case "float" if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?", text, re.ASCII | re.IGNORECASE):
            return float(text) if math.isfinite(float(text)) else None
        case "bool":
            return {"true": True, "false": False}.get(text.lower())
        case _:
            return None


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
