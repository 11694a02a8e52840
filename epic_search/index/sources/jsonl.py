"""JSON lines: an object a line; blank lines are allowed."""

import json
from collections.abc import Iterator
from typing import Any

from epic_search.index.document import Unusable
from epic_search.index.sources.protocol import MAX_ROW_BYTES, Row
from epic_search.index.sources.stream import ByteStream


def rows(stream: ByteStream) -> Iterator[Row]:
    """A row for each line that is not blank."""
    for number, line in stream.lines():
        place = f"line {number}"
        if line is None:
            yield Row(place, Unusable("line too long", f"more than {MAX_ROW_BYTES // 2**20} MiB"))
        elif line := line.strip():
            yield Row(place, record(line))


def record(text: bytes) -> dict[str, Any] | Unusable:
    """The JSON object that the text is."""
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", f"byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return Unusable("malformed JSON", f"{error.msg} at column {error.colno}")
    except ValueError:  # an integer of thousands of digits
        return Unusable("number out of range")
    except RecursionError:
        return Unusable("nested too deeply")
    return value if isinstance(value, dict) else Unusable("not a JSON object", type(value).__name__)
