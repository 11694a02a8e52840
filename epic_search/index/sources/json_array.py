"""A JSON file that is one array of objects, read an item at a time."""

import re
from collections.abc import Iterable, Iterator

from epic_search.errors import UserError
from epic_search.index.document import Unusable
from epic_search.index.sources.jsonl import record
from epic_search.index.sources.protocol import MAX_ROW_BYTES, Row
from epic_search.index.sources.stream import ByteStream

_OUTSIDE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'["\\]')


def rows(stream: ByteStream) -> Iterator[Row]:
    """A row for each item of the array; raises UserError where there is no array, or where it does not end."""
    beginning = stream.beginning().lstrip()
    if beginning and not beginning.startswith(b"["):
        raise UserError(
            f"{stream.name} is no JSON array: it does not begin with '['; give JSON lines with --format jsonl"
        )
    number = 0
    items = _items(stream.blocks())
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except EOFError as error:
            raise UserError(
                f"{stream.name} is cut off or damaged after item {number}: its JSON array does not end; "
                "the documents before that are kept, fetch the file again and repeat the command"
            ) from error
        number += 1
        place = f"item {number}"
        if item is None:
            yield Row(place, Unusable("item too long", f"more than {MAX_ROW_BYTES // 2**20} MiB"))
        else:
            yield Row(place, record(item))


def _items(blocks: Iterable[bytes]) -> Iterator[bytes | None]:
    """The text of each item, None for one over the limit: brackets outside strings are counted, nothing is parsed.

    So one malformed item does not end the file, and arrays one after the other are read on. Raises EOFError where an
    array does not end.
    """
    item, depth, in_string, escaped = bytearray(), 0, False, False
    for block in blocks:
        start = at = 0
        while at < len(block):
            if escaped:
                escaped, at = False, at + 1
                continue
            mark = (_IN_STRING if in_string else _OUTSIDE).search(block, at)
            if mark is None:
                break
            at = mark.end()
            match mark[0]:
                case b'"':
                    in_string = not in_string
                case b"\\":
                    escaped = True
                case b"[" | b"{":
                    depth += 1
                    if depth == 1:
                        start = at
                case b"," if depth == 1:
                    yield _whole(item, block[start : at - 1])
                    item, start = bytearray(), at
                case b"]" | b"}":
                    depth -= 1
                    if depth == 0:
                        last = _whole(item, block[start : at - 1])
                        if last is None or last:
                            yield last
                        item, start = bytearray(), at
        if depth and len(item) <= MAX_ROW_BYTES:
            item += block[start:]
    if depth or in_string:
        raise EOFError


def _whole(item: bytearray, rest: bytes) -> bytes | None:
    return bytes(item + rest).strip() if len(item) + len(rest) <= MAX_ROW_BYTES else None
