"""A file of rows that is read from front to back, or standard input: JSON lines, a JSON array, CSV or TSV."""

import stat
from collections.abc import Iterator
from pathlib import Path, PurePath

from epic_search.errors import UserError
from epic_search.index.sources import csv_table, json_array, jsonl
from epic_search.index.sources.protocol import Columns, Format, Row
from epic_search.index.sources.stream import ByteStream

ENDINGS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
COMPRESSED = frozenset({".gz", ".zst"})


def ending(name: str) -> str:
    """The ending that tells the format, in small letters and without the one of the compression."""
    path = PurePath(name.lower())
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


class DataFile:
    """The rows of a file, or of standard input (`path` None), gzipped or not.

    The format is told by the name's ending, else by the first character. Raises UserError, when rows are asked for, for
    a file that cannot be opened, is cut off, or is in no format that is known.
    """

    columns: Columns | None = None
    naming = "its fields are"
    remark = ""

    def __init__(self, path: Path | None, *, name: str, format: Format | None) -> None:
        self.name = name
        self._path = path
        self._format = format
        self._stream: ByteStream | None = None
        about = path.stat() if path is not None else None
        self.bytes_total = about.st_size if about is not None and stat.S_ISREG(about.st_mode) else 0

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    @property
    def bytes_read(self) -> int:
        """How far into the file (compressed bytes, if it is compressed) reading has come; 0 for a pipe."""
        return self._stream.bytes_read if self._stream is not None else 0

    def rows(self) -> Iterator[Row]:
        """A row for each line, item or row."""
        self._stream = stream = ByteStream(self._path, name=self.name)
        beginning = stream.beginning()
        match self._format or self._guess(beginning.lstrip()[:1]):
            case "json":
                return json_array.rows(stream)
            case "csv" | "tsv" as format:
                self.naming = "its first line names"
                return csv_table.rows(stream, tabs=format == "tsv")
            case _:
                return jsonl.rows(stream)

    def _guess(self, first: bytes) -> Format:
        format = ENDINGS.get(ending(self.name))
        if format in (None, "json"):
            if first == b"[":
                return "json"
            if format == "json" or first in (b"{", b""):
                return "jsonl"
        if format is None:
            raise UserError(
                f"cannot tell the format of {self.name}: it is no JSON, and no name that ends in "
                f"{', '.join(ENDINGS)} or .parquet tells it; give --format jsonl, json, csv, tsv, parquet or text"
            )
        return format
