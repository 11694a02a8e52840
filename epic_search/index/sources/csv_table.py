"""CSV and TSV: the first line names the columns; quoted as spreadsheets and pandas write them."""

import csv
from collections import Counter
from collections.abc import Iterator

from epic_search.errors import UserError
from epic_search.index.document import Unusable
from epic_search.index.sources.protocol import MAX_ROW_BYTES, Row
from epic_search.index.sources.stream import ByteStream

DELIMITERS = ",;\t|"


class _Lines:
    """Lines for csv.reader, which takes several for a row with line ends in its cells; within the limit in all.

    What is not UTF-8 becomes lone surrogates, so that the row stays in shape.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._lines = stream.lines()
        self.number = 0
        self.row_bytes = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        self.row_bytes += MAX_ROW_BYTES + 1 if line is None else len(line)
        if line is None or self.row_bytes > MAX_ROW_BYTES:
            raise Unusable("row too long", f"more than {MAX_ROW_BYTES // 2**20} MiB")
        return line.decode("utf-8", "surrogateescape")


def rows(stream: ByteStream, *, tabs: bool) -> Iterator[Row]:
    """A row for each row under the header. Raises UserError for a header that cannot be read.

    Columns are separated by tabs, or else by the first of , ; tab | that the header holds.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(stream)
    header_line = stream.beginning().partition(b"\n")[0].decode("utf-8", "replace")
    delimiter = "\t" if tabs else next((mark for mark in DELIMITERS if mark in header_line), ",")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        first, lines.row_bytes = lines.number + 1, 0
        found: list[str] | Unusable
        try:
            found = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = Unusable("malformed CSV", str(error))
        except Unusable as error:
            found = error
        if not found:  # a blank line
            continue
        if not header:
            header = _header(found, stream.name)
            continue
        place = f"line {first}" if lines.number <= first else f"lines {first}-{lines.number}"
        yield Row(place, found if isinstance(found, Unusable) else _values(header, found))


def _header(cells: list[str] | Unusable, name: str) -> list[str]:
    if isinstance(cells, Unusable):
        raise UserError(
            f"the first line of {name} cannot be read ({cells.kind}: {cells.detail}); it must name the columns"
        )
    header = [cell.strip() or f"column_{number}" for number, cell in enumerate(cells, 1)]
    if not _is_utf8(header):
        raise UserError(f"the first line of {name} is not UTF-8; save the file as UTF-8 and repeat the command")
    twice = next((column for column, count in Counter(header).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"the first line of {name} names two columns {twice!r}; it must name each column once")
    return header


def _values(header: list[str], cells: list[str]) -> dict[str, str | None] | Unusable:
    if len(cells) != len(header):
        return Unusable("ragged row", f"{len(cells)} cells, and the first line names {len(header)} columns")
    if not _is_utf8(cells):
        return Unusable("not UTF-8")
    return {column: cell or None for column, cell in zip(header, cells, strict=True)}


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
