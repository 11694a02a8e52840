"""The filter grammar, read by recursive descent.

    filter     = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" filter ")" | condition
    condition  = FIELD ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) VALUE
               | FIELD "in" "(" VALUE { "," VALUE } ")"
               | FIELD "exists"

FIELD and VALUE are words, or in single or double quotes, where a backslash takes the next character as it is. What a
VALUE means is its field's type: text for a keyword; a number; true or false; a date (2024-05-17, which is its midnight)
or a moment (2024-05-17T09:30:00, UTC unless it ends in +02:00). Of a field that is a list, a condition asks whether
one value fulfils it. `x != 1` is `not x = 1`, true also of documents without x.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from epic_search.errors import UserError
from epic_search.index.fields import MAX_INT, known, typed
from epic_search.index.filters import (
    RESERVED,
    WORD,
    And,
    Compare,
    Comparison,
    Exists,
    FieldType,
    Filter,
    In,
    Not,
    Or,
    Value,
)

MAX_LENGTH = 10_000
MAX_DEPTH = 50
TOKEN = re.compile(
    rf"""\s*(?:(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<symbol>!=|<=|>=|[=<>(),])|(?P<word>{WORD.pattern})|$)""",
    re.DOTALL,
)
COMPARISONS: dict[str, Comparison] = {"=": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
ELSEWHERE = {"==": "=", "=>": ">=", "=<": "<=", "<>": "!="}  # comparisons of other languages, and ours
ORDERED = ("int", "float", "datetime")
VALUES = {
    "int": f"a whole number up to {MAX_INT:,} such as 2024",
    "float": "a number such as 0.5",
    "bool": "true or false",
    "datetime": "a date such as 2024-05-17 or a moment such as 2024-05-17T09:30:00",
}


def parse(text: str, fields: Mapping[str, FieldType]) -> Filter:
    """The filter that `text` means for fields of these types.

    Raises UserError that points at the character where the text stops making sense.
    """
    if len(text) > MAX_LENGTH:
        raise UserError(f"the filter has {len(text):,} characters; it may have {MAX_LENGTH:,}")
    return _Parser(text, fields).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "quoted", "symbol", "word" or "end"
    text: str  # without quotes
    start: int


class _Parser:
    def __init__(self, text: str, fields: Mapping[str, FieldType]) -> None:
        self._text = text
        self._fields = fields
        self._depth = 0
        self._end = 0
        self._token = self._read()

    def whole(self) -> Filter:
        """The filter of the whole text."""
        if self._token.kind == "end":
            raise self._error("it is empty; write a condition such as year >= 2020")
        filter = self._either()
        if self._token.kind != "end":
            raise self._error("expected 'and', 'or' or the end of the filter here")
        return filter

    def _either(self) -> Filter:
        parts = [self._all()]
        while self._takes("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all(self) -> Filter:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self) -> Filter:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested too deeply here; up to {MAX_DEPTH} levels can be read")
        filter: Filter
        if self._takes("not"):
            filter = Not(self._one())
        elif self._takes("("):
            filter = self._either()
            self._require(")", "expected 'and', 'or' or ')' here")
        else:
            filter = self._condition()
        self._depth -= 1
        return filter

    def _condition(self) -> Filter:
        token = self._token
        if token.kind not in ("word", "quoted") or (token.kind == "word" and token.text.lower() in RESERVED):
            raise self._error("expected the name of a field, 'not' or '(' here")
        kind = self._fields.get(token.text)
        if kind is None:
            raise self._error(f"unknown field '{token.text}'; fields of this index: {known(self._fields)}")
        field = token.text
        self._next()
        if self._takes("exists"):
            return Exists(field)
        if self._takes("in"):
            self._require("(", "expected '(' and values after 'in'")
            values = [self._value(field, kind)]
            while self._takes(","):
                values.append(self._value(field, kind))
            self._require(")", "expected ',' or ')' here")
            return In(field, tuple(values))
        if self._takes("!="):
            return Not(Compare(field, "=", self._value(field, kind)))
        comparison = COMPARISONS.get(self._token.text) if self._token.kind == "symbol" else None
        if comparison is None:
            raise self._error("expected one of = != < <= > >= 'in' 'exists' after the field")
        if comparison != "=" and kind not in ORDERED:
            raise self._error(f"'{field}' is of type {kind}, which has no order; use =, != or in")
        self._next()
        return Compare(field, comparison, self._value(field, kind))

    def _value(self, field: str, kind: FieldType) -> Value:
        token = self._token
        if token.kind not in ("word", "quoted"):
            written = self._text[max(0, token.start - 1) : token.start + 1]
            hint = f"; for '{written}' write '{ELSEWHERE[written]}'" if written in ELSEWHERE else ""
            raise self._error(f"expected a value here ('{field}' is of type {kind}){hint}")
        value = typed(token.text, kind)
        if value is None:
            raise self._error(f"'{token.text}' does not fit '{field}', which is of type {kind}: write {VALUES[kind]}")
        self._next()
        return value

    def _takes(self, what: str) -> bool:
        """Go on if the token is this symbol or word."""
        if self._token.kind in ("symbol", "word") and self._token.text.lower() == what:
            self._next()
            return True
        return False

    def _require(self, symbol: str, otherwise: str) -> None:
        if not self._takes(symbol):
            raise self._error(otherwise)

    def _next(self) -> None:
        self._token = self._read()

    def _read(self) -> _Token:
        found = TOKEN.match(self._text, self._end)
        if found is None:
            start = len(self._text) - len(self._text[self._end :].lstrip())
            character = self._text[start]
            what = "this quote is not closed" if character in "'\"" else f"{character!r} is not expected here"
            raise UserError(f"filter: {what}", pointer=(self._text, start))
        self._end = found.end()
        kind = found.lastgroup or "end"
        text = found[kind] if found.lastgroup else ""
        if kind == "quoted":
            text = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
        return _Token(kind, text, found.start(kind) if found.lastgroup else len(self._text))

    def _error(self, message: str) -> UserError:
        return UserError(f"filter: {message}", pointer=(self._text, self._token.start))
