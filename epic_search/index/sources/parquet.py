"""A Parquet file, a few rows at a time: a huge row group never has to fit into memory."""

from collections.abc import Iterator
from pathlib import Path

from epic_search.errors import UserError
from epic_search.index.sources.arrow import table_rows
from epic_search.index.sources.protocol import Columns, Row

MAGIC = b"PAR1"
BATCH_BYTES = 8 * 2**20
MAX_BATCH_ROWS = 1024


class ParquetSource:
    """The rows of one file. Raises UserError when the file is cut off or damaged."""

    columns: Columns | None = None
    naming = "its columns are"
    remark = ""

    def __init__(self, path: Path, *, name: str) -> None:
        self.name = name
        self._path = path
        self.bytes_total = path.stat().st_size
        self.bytes_read = 0

    def close(self) -> None:
        """Nothing is open between rows."""

    def rows(self) -> Iterator[Row]:
        """A row for each row."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        number = 0
        try:
            with ParquetFile(self._path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True) as file:
                total = file.metadata.num_rows
                size = sum(file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
                at_once = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES * total // max(1, size)))
                for batch in file.iter_batches(batch_size=at_once):
                    for values in table_rows(batch):
                        number += 1
                        yield Row(f"row {number}", values)
                    self.bytes_read = self.bytes_total * number // total
        except (ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UserError(
                f"{self.name} is no Parquet file, or a damaged or cut-off one, after row {number}: {reason}; "
                "the documents before that are kept, fetch the file again and repeat the command"
            ) from error
