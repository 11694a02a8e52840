"""The documents of an index as JSON lines that can be indexed again, and their vectors beside them if asked for.

A line is the document: `_id`, `title`, `text` and everything else that came with it. The text of one passage is as it
came in. One of several passages is put together where each repeats the end of the one before: long repetitions inside
it may come out shorter, and white space around it is gone.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from epic_search.errors import UserError
from epic_search.index.audit import Progress
from epic_search.index.folder import Home
from epic_search.index.passages import point_id
from epic_search.index.place import IndexContents, place_of, stored_manifest
from epic_search.index.store.protocol import StoredPoint, is_ours, pages_of
from epic_search.index.verify import LOCK_WAIT_SECONDS

LONG_TITLE = 100  # characters; one that fills most of a passage is cut with the text (see passages.cut)


@dataclass
class Export:
    """How much was written. `joined`: documents whose text was put together from several passages.

    `left_out`: passages of documents that are stored in part, or no longer: a run on a server was cut off. `others`:
    points there that are no passages.
    """

    name: str
    documents: int = 0
    passages: int = 0
    joined: int = 0
    left_out: int = 0
    others: int = 0


def export_index(
    name: str,
    out: TextIO,
    *,
    vectors: Path | None = None,
    home: Home | None = None,
    ascii: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write all documents of an index to `out`, in the order of their ids, one JSON object a line.

    `vectors`: a .npy file for the passages' vectors, float32 (P, E): those of the first line first, a document's
    passages in their order. `ascii`: escape every other character. Raises UserError when there is no such index, when
    another process has it open, when its files are damaged, and for vectors that cannot be written.
    """
    if vectors is not None and vectors.suffix != ".npy":
        raise UserError(f"'{vectors}' must end in .npy, the format of the vectors")
    report = Export(name)
    with ExitStack() as opened:
        place = opened.enter_context(closing(place_of(name, home)))
        lock = opened.enter_context(place.lock(wait_seconds=LOCK_WAIT_SECONDS))
        manifest = stored_manifest(place)
        contents = opened.enter_context(place.contents(manifest, lock))
        spool = opened.enter_context(_Spool())
        for page in pages_of(contents.store):
            ours = [stored for stored in page if is_ours(stored.point.payload)]
            whole = _whole(ours, contents)
            for stored in whole:
                spool.add(stored, with_vector=vectors is not None)
            report.passages += len(whole)
            report.left_out += len(ours) - len(whole)
            report.others += len(page) - len(ours)
            if progress is not None:
                progress(report.passages + report.left_out, contents.passages)
        for record, passages in spool.records():
            report.documents += 1
            report.joined += passages > 1
            out.write(json.dumps(record, ensure_ascii=ascii, allow_nan=False) + "\n")
        if vectors is not None:
            _write_vectors(vectors, spool.vectors(), (report.passages, manifest.dim))
    return report


class _Spool:
    """Passages in a temporary file, because the store gives them in an order of its own."""

    def __init__(self) -> None:
        self._passages = sqlite3.connect("")  # a name that is empty: a file that is deleted with the connection
        self._passages.execute(
            "CREATE TABLE passages (id TEXT, number INTEGER, payload TEXT, vector BLOB, PRIMARY KEY (id, number)) "
            "WITHOUT ROWID"
        )

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._passages.close()

    def add(self, stored: StoredPoint, *, with_vector: bool) -> None:
        """Keep a passage."""
        payload = stored.point.payload
        vector = stored.dense[""].tobytes() if with_vector else None
        self._passages.execute(
            "INSERT INTO passages VALUES (?, ?, ?, ?)", (payload["id"], payload["passage"], json.dumps(payload), vector)
        )

    def records(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Documents as lines to be indexed, each with the number of its passages."""
        texts: list[str] = []
        last: dict[str, Any] = {}
        for (line,) in self._passages.execute("SELECT payload FROM passages ORDER BY id, number"):
            payload = json.loads(line)
            if texts and payload["id"] != last["id"]:
                yield _record(last, texts), len(texts)
                texts = []
            last = payload
            texts.append(payload["text"])
        if texts:
            yield _record(last, texts), len(texts)

    def vectors(self) -> Iterator[np.ndarray]:
        """The passages' vectors, in the order of the records."""
        for (blob,) in self._passages.execute("SELECT vector FROM passages ORDER BY id, number"):
            yield np.frombuffer(blob, np.float32)


def _whole(page: Sequence[StoredPoint], contents: IndexContents) -> list[StoredPoint]:
    """The points of documents that are stored whole, and in one version."""
    versions = contents.versions(sorted({stored.point.payload["id"] for stored in page}))

    def is_whole(payload: dict[str, Any], id: str) -> bool:
        version = versions.get(payload["id"])
        return version is not None and point_id(payload["id"], version, payload["passage"]) == id

    return [stored for stored in page if is_whole(stored.point.payload, stored.point.id)]


def _record(payload: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    text, title = _joined(texts), payload["title"]
    if text == title:
        text = ""  # there was only a title
    elif len(title) > LONG_TITLE:
        text = text.removeprefix(f"{title}\n")
    record = {"_id": payload["id"], "title": title, "text": text}
    return record | {key: value for key, value in payload["payload"].items() if key not in record}


def _joined(texts: list[str]) -> str:
    """One text of pieces of which each repeats the end of the one before."""
    text = texts[0]
    for piece in texts[1:]:
        shared = _overlap(text, piece)
        text += piece[shared:] if shared else f" {piece}"
    return text


def _overlap(text: str, piece: str) -> int:
    """The length of the longest beginning of `piece`, up to half of it, that `text` ends with.

    Found with the table of Knuth, Morris and Pratt (SIAM J. Comput. 1977).
    """
    most = len(piece) // 2  # passages share an eighth of what the encoder reads
    both = f"{piece[:most]}\0{text[-most:]}"  # no text that is indexed has a NUL
    table = [0] * len(both)
    for i in range(1, len(both)):
        length = table[i - 1]
        while length and both[i] != both[length]:
            length = table[length - 1]
        table[i] = length + (both[i] == both[length])
    return table[-1]


def _write_vectors(path: Path, vectors: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    try:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for vector_E in vectors:
                file.write(vector_E.astype("<f4", copy=False).tobytes())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a place that you may write to") from error
