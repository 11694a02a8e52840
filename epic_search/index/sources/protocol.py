"""What every kind of source is: rows, one at a time, and how far it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from epic_search.index.document import Unusable

MAX_ROW_BYTES = 32 * 2**20  # a file without line ends must not be read whole
BOM = b"\xef\xbb\xbf"

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "text", "dataset"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source, or why it cannot be read. `place` names it: `line 12`, `row 12`, `notes/a.md`.

    `id`: the document's, where it is known even of a row that cannot be read.
    """

    place: str
    values: dict[str, Any] | Unusable
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields of a source's rows make a document; everything else is payload.

    `id`: the first of these that a row has; () makes the id of the content. `text`: joined in this order. `beside`:
    payload that does not count as content.
    """

    id: tuple[str, ...] = ("_id", "id")
    text: tuple[str, ...] = ("text",)
    title: str | None = "title"
    beside: tuple[str, ...] = ()


class Source(Protocol):
    """Something that the user named, as a stream of rows.

    `name`: as the user wrote it. `columns`: where they are known, else None. `naming`: the words before the names of
    the fields in a sentence about them. `remark`: what the user should know before it is read, or "". `bytes_total`: 0
    where it is unknown. `rows` is called once; it raises UserError where the source cannot be read on.
    """

    name: str
    columns: Columns | None
    naming: str
    remark: str
    bytes_total: int

    @property
    def bytes_read(self) -> int: ...

    def rows(self) -> Iterator[Row]: ...

    def close(self) -> None: ...
