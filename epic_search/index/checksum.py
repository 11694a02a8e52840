"""A checksum of what is stored of a document. The engine keeps none, so a changed byte of a vector goes unnoticed.

The list of documents keeps one a document; `verify` computes it again from what the store returns.
"""

import hashlib
import json
from typing import Any

import numpy as np

from epic_search.index.store.protocol import Point

# A document's checksum is the sum of its passages' (whatever order they come in), and fits SQLite's integers.
MASK = 2**62 - 1


def checksum(point: Point, vector_E: np.ndarray) -> int:
    """62 bits over a passage's id, every bit of its vector (float32) and its payload."""
    digest = hashlib.blake2b(point.id.encode(), digest_size=8)
    digest.update(vector_E.astype("<f4", copy=False).tobytes())
    digest.update(json.dumps(_canonical(point.payload), sort_keys=True).encode())
    return int.from_bytes(digest.digest(), "little") & MASK


def _canonical(value: Any) -> Any:
    """JSON as the engine gives it back: it may change the last digits of a float, and a large integer becomes one."""
    match value:
        case dict():
            return {key: _canonical(item) for key, item in value.items()}
        case list():
            return [_canonical(item) for item in value]
        case bool():
            return value
        case float():
            return f"{value:.6g}"
        case int() if not -(2**63) <= value < 2**64:
            return f"{float(value):.6g}"
        case _:
            return value
