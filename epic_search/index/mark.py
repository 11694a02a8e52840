"""What a passage's point carries on a server, where there is no list of documents beside the points."""

import re
from dataclasses import dataclass

import numpy as np

from epic_search.index.checksum import checksum
from epic_search.index.store.protocol import Point

VERSION, PASSAGES, CHECKSUM = "version", "passages", "checksum"
VERSION_FORM = re.compile("(?:[0-9a-f]{2})+")


@dataclass(frozen=True, slots=True)
class Mark:
    """Of the point's document: its version (hexadecimal) and the number of its passages; of the point: its checksum.

    The checksum is None where an older epic-search stored the point.
    """

    version: str
    passages: int
    checksum: int | None


def marked(point: Point, vector_E: np.ndarray, *, version: bytes, passages: int) -> Point:
    """The point with its mark in its payload."""
    mark = {VERSION: version.hex(), PASSAGES: passages, CHECKSUM: checksum(point, vector_E)}
    return Point(point.id, {**point.payload, **mark})


def unmarked(point: Point) -> tuple[Point, Mark | None]:
    """The point without its mark, and the mark; None where there is no such mark."""
    payload = dict(point.payload)
    version, passages, checksum = (payload.pop(key, None) for key in (VERSION, PASSAGES, CHECKSUM))
    if not isinstance(version, str) or not VERSION_FORM.fullmatch(version) or not isinstance(passages, int):
        return point, None
    return Point(point.id, payload), Mark(version, passages, checksum)
