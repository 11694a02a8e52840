"""From a row to a document: which of its fields are id, text and title, and what a document must be."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from epic_search.errors import UserError
from epic_search.index.document import Document, Unusable
from epic_search.index.sources.protocol import MAX_ROW_BYTES, Columns

MAX_PAYLOAD_BYTES = 2**20  # each passage of a document carries its payload
# The store's engine writes deeper payloads, but then fails on every search that meets one: its JSON reader
# stops at 128 levels.
MAX_DEPTH = 64
IDS = ("_id", "id", "docid", "doc_id", "url")
TEXTS = ("text", "body", "content", "abstract", "passage")
TITLES = ("title", "name", "headline")
NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields that the user named: the id's, the text's (joined in this order), the title's. Others are guessed."""

    id: str | None = None
    text: tuple[str, ...] = ()
    title: str | None = None


def choose_columns(fields: Fields, names: Collection[str], *, source: str, naming: str) -> tuple[Columns, str]:
    """The columns of rows that have these fields, and what to tell the user about guesses ("" for the usual names).

    Raises UserError, naming the fields that there are, when one that the user named is not among them, and when none is
    called like a text. Of rows that all cannot be used (no `names`) it takes the usual ones on trust.
    """
    names = names or dict.fromkeys(
        [*Columns().id, *(fields.text or Columns().text), fields.id or "id", fields.title or "title"]
    )
    given_texts = [(text, "--text-field") for text in fields.text]
    for given, option in [(fields.id, "--id-field"), *given_texts, (fields.title, "--title-field")]:
        if given is not None and given not in names:
            raise UserError(f"{source} has no field {given!r}; {naming} {_listed(names)}: correct {option}")
    free = [name for name in names if name not in {fields.id, fields.title, *fields.text}]
    text = fields.text or tuple(_like(TEXTS, free)[:1])
    if not text:
        raise UserError(
            f"{source} has no field called like a text ({', '.join(TEXTS)}); {naming} {_listed(names)}: "
            "name the one that holds the text with --text-field"
        )
    ids = (fields.id,) if fields.id is not None else tuple(_like(IDS, free))
    title = fields.title if fields.title is not None else next(iter(_like(TITLES, free)), None)
    guesses = []
    if fields.id is None and not set(ids) & {"_id", "id"}:
        guesses.append(f"id from {ids[0]!r}" if ids else "the id is a hash of the content (no --id-field)")
    if not fields.text and text != ("text",):
        guesses.append(f"text from {text[0]!r}")
    if fields.title is None and title not in (None, "title"):
        guesses.append(f"title from {title!r}")
    return Columns(ids, text, title), f"{source}: {', '.join(guesses)}" if guesses else ""


def _like(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that are wanted, whatever their case, in the order of `wanted`."""
    return [name for want in wanted for name in names if name.lower() == want]


def _listed(names: Collection[str]) -> str:
    shown = [repr(name if len(name) <= 40 else f"{name[:39]}…") for name in list(names)[:NAMES_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def document(values: dict[str, Any], columns: Columns, *, place: str) -> Document:
    """The document that a row of JSON values is; raises Unusable where it is none. Takes its parts out of `values`."""
    document_id = _id(values, columns.id)
    which = f"id '{document_id}'" if document_id is not None else ""
    title = values.pop(columns.title, None) if columns.title is not None else None
    if title is None:
        title = ""
    if not isinstance(title, str):
        raise Unusable("title is not a string", which)
    text = _text(values, columns.text, which)
    if not text.strip() and not title.strip():
        raise Unusable("empty text", which)
    if "\0" in f"{document_id}{title}{text}":
        raise Unusable("NUL character", which.replace("\0", "\\0"))
    if _depth(values) > MAX_DEPTH:
        raise Unusable("nested too deeply", f"more than {MAX_DEPTH} levels")
    content = {name: value for name, value in values.items() if name not in columns.beside}
    if document_id is None:
        document_id = hashlib.sha256(_canonical(title, text, content)).hexdigest()[:32]
    canonical = _canonical(document_id, title, text, content)
    if len(canonical) > MAX_ROW_BYTES:
        raise Unusable("too long", f"{which}, more than {MAX_ROW_BYTES // 2**20} MiB")
    if len(canonical) > MAX_PAYLOAD_BYTES and len(_canonical(content)) > MAX_PAYLOAD_BYTES:
        raise Unusable("payload too large", f"{which}, more than {MAX_PAYLOAD_BYTES // 2**20} MiB")
    digest = hashlib.sha256(canonical).digest()
    return Document(document_id, title.strip(), text, values, place, len(canonical), digest)


def _id(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    if not names:
        return None
    key = next((name for name in names if name in values), None)
    value = values.pop(key) if key is not None else None
    if value is None:
        raise Unusable("missing id", f"no value of {' or '.join(map(repr, names))}")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable("id is not a string or an integer", type(value).__name__)
    if not str(value).strip():
        raise Unusable("empty id")
    return str(value)


def _text(values: dict[str, Any], names: tuple[str, ...], which: str) -> str:
    parts = [values.pop(name) for name in names if name in values]
    if not parts:
        raise Unusable("missing text", which)
    if not all(part is None or isinstance(part, str) for part in parts):
        raise Unusable("text is not a string", which)
    return "\n".join(part for part in parts if part) if len(parts) > 1 else parts[0] or ""


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        containers = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for container in containers for item in container]
    return depth


def _canonical(*parts: object) -> bytes:
    """The parts as canonical JSON, which also refuses what neither UTF-8 nor the store can hold."""
    try:
        return json.dumps(parts, ensure_ascii=False, sort_keys=True, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable("lone surrogate", "a \\ud800-\\udfff escape without its pair") from error
    except ValueError as error:
        raise Unusable("number out of range", "NaN or infinite") from error
