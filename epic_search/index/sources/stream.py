"""The bytes of a file or a pipe, decompressed on the way: lines and blocks in bounded memory."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from epic_search.errors import UserError
from epic_search.index.sources.protocol import BOM, MAX_ROW_BYTES

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BLOCK_BYTES = 2**18
ZSTD_BUFFER_BYTES = 2**14


class ByteStream:
    """A file (None: standard input), gzip or zstd by its first bytes. Raises UserError when it cannot be opened."""

    def __init__(self, path: Path | None, *, name: str) -> None:
        self.name = name
        self._kind = ""
        self._raw = _standard_input() if path is None else _opened(path)
        self._closes = path is not None
        self._file = self._decompressed()

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self._closes:
            self._raw.close()

    @property
    def bytes_read(self) -> int:
        """How far into the file (compressed bytes, if it is compressed) reading has come; 0 for a pipe."""
        return self._raw.tell() if self._raw.seekable() else 0

    def beginning(self) -> bytes:
        """The first bytes, without a byte order mark, which stay to be read. Raises UserError for UTF-16."""
        try:
            found = self._file.peek(BLOCK_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged("line 0", error) from error
        if found.startswith(UTF16_BOMS):
            raise UserError(
                f"{self.name} is UTF-16; save it as UTF-8 (iconv -f utf-16 -t utf-8) and repeat the command"
            )
        return found.removeprefix(BOM)

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """(number from 1, line with its end), None for a line over the limit."""
        number = 0
        try:
            while line := self._file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if len(line) > MAX_ROW_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = self._file.readline(2**20)
                    yield number, None
                else:
                    yield number, line.removeprefix(BOM) if number == 1 else line
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(f"line {number}", error) from error

    def blocks(self) -> Iterator[bytes]:
        """All bytes, some at a time, without a byte order mark."""
        done = 0
        try:
            while block := self._file.read1(BLOCK_BYTES):
                yield block if done else block.removeprefix(BOM)
                done += len(block)
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(f"byte {done:,}", error) from error

    def _decompressed(self) -> io.BufferedReader | gzip.GzipFile:
        magic = self._raw.peek(4)
        if magic.startswith(GZIP_MAGIC):
            self._kind = "gzip "
            return gzip.GzipFile(fileobj=self._raw)
        if magic.startswith(ZSTD_MAGIC):
            import pyarrow

            self._kind = "zstd "
            # This reader of zstd tells a file that ends early; what it has read of the last buffer is lost then.
            file = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._raw, "r"), "zstd")
            return io.BufferedReader(file, ZSTD_BUFFER_BYTES)
        return self._raw

    def _damaged(self, place: str, error: Exception) -> UserError:
        return UserError(
            f"{self.name} is a damaged or cut-off {self._kind}file after {place}: {error}; "
            "the documents before that are kept, fetch the file again and repeat the command"
        )


def _opened(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """The sentence for something that cannot be opened: for an OSError, or the ValueError of a NUL in the path."""
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(
        f"cannot read '{path}': {reason}; give a file, a folder, a pattern such as 'notes/*.md', or hf:NAME"
    )


def _standard_input() -> io.BufferedReader:
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("cannot read '-': standard input is closed; pipe JSON lines into the command, or give a file")
    if sys.stdin.isatty():
        raise UserError("'-' reads JSON lines from a pipe, and this is a terminal; pipe them in, or give a file")
    file: BinaryIO = sys.stdin.buffer
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
