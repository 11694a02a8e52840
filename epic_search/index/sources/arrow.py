"""Rows of Arrow tables as JSON values: what Parquet files and data sets have in common."""

import math
from collections.abc import Iterator
from datetime import date, time
from typing import TYPE_CHECKING, Any

from epic_search.index.document import Unusable

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Table

ROWS_AT_ONCE = 64


def table_rows(table: "RecordBatch | Table") -> Iterator[dict[str, Any] | Unusable]:
    """Each row: lists and structs as JSON, times and decimals as strings, NaN as null."""
    try:
        yield from map(plain, table.to_pylist(maps_as_pydicts="lossy"))
    except (ValueError, OverflowError) as error:  # some row holds a year after 9999, or a text that is not UTF-8
        if len(table) == 1:
            yield Unusable("unreadable value", str(error))
        else:
            for row in range(len(table)):
                yield from table_rows(table.slice(row, 1))


def plain(value: Any) -> Any:
    """The value as json.dumps takes it. Bytes become text where they are UTF-8, else null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): plain(part) for key, part in value.items()}
        case list() | tuple():
            return [plain(part) for part in value]
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case bytes():
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                return None
        case _:
            return str(value)
