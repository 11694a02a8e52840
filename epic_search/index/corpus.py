"""Documents from a JSONL file, plain or gzipped, one line at a time: a corpus never has to fit into memory.

A line is a JSON object: `_id` (or `id`), `title`, `text`; every other key is payload, returned with each hit.
A line that cannot be used is skipped, counted and named with its line number; `strict` stops at the first.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from epic_search.errors import UserError

MAX_LINE_BYTES = 32 * 2**20  # a file without line ends must not be read whole
MAX_PAYLOAD_BYTES = 2**20  # each passage of a document carries its payload
# The store's engine writes deeper payloads, but then fails on every search that meets one: its JSON reader
# stops at 128 levels.
MAX_DEPTH = 64
PROBLEMS_KEPT = 20
BOM = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Document:
    """One usable line, of `size` bytes. `digest` (sha256) changes when id, title, text or payload does."""

    id: str
    title: str
    text: str
    payload: dict[str, Any]
    line: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line was skipped."""

    line: int
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Problems:
    """All skipped lines, counted by kind; the first few are kept whole."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it if it is among the first."""
        self.counts[problem.kind] += 1
        if len(self.first) < PROBLEMS_KEPT:
            self.first.append(problem)

    @property
    def total(self) -> int:
        """How many lines were skipped."""
        return self.counts.total()


class _Unusable(Exception):
    """A line that is no document: (kind, detail)."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail


class Corpus:
    """A JSONL file as a stream of documents. Iterate once; then `problems` tells what was skipped.

    Raises UserError when the file cannot be opened, when a gzip file ends early, and, if strict, at the first
    bad line.
    """

    def __init__(self, path: Path, *, strict: bool = False) -> None:
        self.path = path
        self.strict = strict
        self.problems = Problems()
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a .jsonl or .jsonl.gz file")
        try:
            self._raw: BinaryIO = path.open("rb")
            self.bytes_total = path.stat().st_size
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"cannot read '{path}': {reason}; give the path of a .jsonl or .jsonl.gz file") from error

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    @property
    def bytes_read(self) -> int:
        """How far into the file (compressed bytes, if it is gzipped) reading has come; 0 for a pipe."""
        return self._raw.tell() if self._raw.seekable() else 0

    def skip(self, problem: Problem) -> None:
        """Report a line that is not used; raises UserError if strict."""
        if self.strict:
            raise UserError(f"{self.path}, {problem}; correct the line, or leave out --strict to skip such lines")
        self.problems.add(problem)

    def __iter__(self) -> Iterator[Document]:
        for number, line in self._lines():
            try:
                yield _document(line, number)
            except _Unusable as error:
                self.skip(Problem(number, error.kind, error.detail))

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        """(line number from 1, line without its end), None for a line over the limit; without blank lines."""
        is_gzip = self._raw.peek(2)[:2] == GZIP_MAGIC if isinstance(self._raw, io.BufferedReader) else False
        file = gzip.GzipFile(fileobj=self._raw) if is_gzip else self._raw
        number = 0
        try:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(2**20)
                    yield number, None
                    continue
                line = line.removeprefix(BOM).strip() if number == 1 else line.strip()
                if line:
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{self.path} is a damaged or cut-off gzip file after line {number}: {error}; "
                "the documents before that are kept, fetch the file again and repeat the command"
            ) from error


def _document(line: bytes | None, number: int) -> Document:
    if line is None:
        raise _Unusable("line too long", f"more than {MAX_LINE_BYTES // 2**20} MiB")
    record = _record(line)
    document_id = _id(record)
    title = record.pop("title", None)
    if title is None:
        title = ""
    if not isinstance(title, str):
        raise _Unusable("title is not a string", f"id '{document_id}'")
    if "text" not in record:
        raise _Unusable("missing text", f"id '{document_id}'")
    text = record.pop("text")
    if not isinstance(text, str):
        raise _Unusable("text is not a string", f"id '{document_id}'")
    if not text.strip() and not title.strip():
        raise _Unusable("empty text", f"id '{document_id}'")
    if "\0" in document_id or "\0" in title or "\0" in text:
        raise _Unusable("NUL character", f"id '{document_id}'".replace("\0", "\\0"))
    digest = _digest(document_id, title, text, record)
    if len(line) > MAX_PAYLOAD_BYTES and len(json.dumps(record)) > MAX_PAYLOAD_BYTES:
        raise _Unusable("payload too large", f"id '{document_id}', more than {MAX_PAYLOAD_BYTES // 2**20} MiB")
    return Document(document_id, title.strip(), text, record, number, len(line), digest)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Unusable("not UTF-8", f"byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise _Unusable("malformed JSON", f"{error.msg} at column {error.colno}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise _Unusable("number out of range") from error
    except RecursionError as error:
        raise _Unusable("nested too deeply") from error
    if not isinstance(record, dict):
        raise _Unusable("not a JSON object", type(record).__name__)
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _depth(record) > MAX_DEPTH:
        raise _Unusable("nested too deeply", f"more than {MAX_DEPTH} levels")
    return record


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        containers = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for container in containers for item in container]
    return depth


def _id(record: dict[str, Any]) -> str:
    key = "_id" if "_id" in record else "id"
    if key not in record:
        raise _Unusable("missing id", "no key '_id' or 'id'")
    value = record.pop(key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Unusable("id is not a string or an integer", type(value).__name__)
    if not str(value).strip():
        raise _Unusable("empty id")
    return str(value)


def _digest(*parts: object) -> bytes:
    """sha256 of the parts as canonical JSON, which also refuses what neither UTF-8 nor the store can hold."""
    try:
        canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Unusable("lone surrogate", "a \\ud800-\\udfff escape without its pair") from error
    except ValueError as error:
        raise _Unusable("number out of range", "NaN or infinite") from error
    return hashlib.sha256(canonical).digest()
