"""The text files of a folder: a document each, found in a stable order and without leaving the folder."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from epic_search.errors import UserError
from epic_search.index.document import Unusable
from epic_search.index.sources import html, pdf
from epic_search.index.sources.protocol import BOM, MAX_ROW_BYTES, Columns, Row
from epic_search.index.sources.stream import UTF16_BOMS, unreadable
from epic_search.index.sources.titles import markdown_title, rst_title

MARKDOWN = frozenset({".md", ".markdown"})
HTML = frozenset({".html", ".htm", ".xhtml"})
TEXT = frozenset({".txt", ".text", ".rst"}) | MARKDOWN | HTML
PDF = ".pdf"
KINDS = ".txt, .md, .rst, .html or .pdf"
MAX_FILE_BYTES = MAX_ROW_BYTES
VERSION_CONTROL = frozenset({"CVS", "_darcs"})  # the others are hidden


def is_text(name: str) -> bool:
    """Whether a file is one that is read as text, by its name."""
    suffix = Path(name).suffix.lower()
    return suffix in TEXT or (suffix == PDF and pdf.can_read())


class TextFiles:
    """The text files below a folder, or the given ones of them. A document's id is its path from the folder's parent.

    Hidden files, version control and files of other kinds are left out; `every`: all kinds are read. Symbolic links are
    not followed, except those given. Raises UserError for a folder that cannot be read or holds nothing to read.
    """

    columns: Columns | None = Columns(id=("id",), beside=("modified",))
    naming = "its fields are"

    def __init__(self, folder: Path, *, name: str, files: Sequence[Path] | None = None, every: bool = False) -> None:
        self.name = name
        self._folder = folder
        self._files = files
        self._every = every
        self._parent = Path(folder.resolve().name)
        self._left_out: Counter[str] = Counter()
        self._links = 0
        self.bytes_read = self.bytes_total = count = 0
        for found in self._found():
            if not isinstance(found, OSError):
                self.bytes_total += found[1]
                count += 1
            elif found.filename == str(folder):
                raise unreadable(folder, found)
        if not count:
            raise UserError(self._nothing())
        self.remark = self._remark()

    def close(self) -> None:
        """Nothing stays open."""

    def rows(self) -> Iterator[Row]:
        """A row for each file, in the order of their paths, and for each folder that cannot be looked into."""
        for found in self._found():
            if isinstance(found, OSError):
                yield Row(self._place(Path(found.filename)), Unusable("cannot be read", found.strerror or ""))
                continue
            path, size = found
            place = self._place(path)
            values: dict[str, Any] | Unusable
            try:
                values = self._document(path, place)
            except Unusable as error:
                values = error
            except OSError as error:
                values = Unusable("cannot be read", error.strerror or str(error))
            self.bytes_read += size
            yield Row(place, values, id=place)

    def _place(self, path: Path) -> str:
        """The path from the folder's parent. What is not UTF-8 in it is replaced."""
        return os.fsencode(self._parent / path.relative_to(self._folder)).decode("utf-8", "replace")

    def _found(self) -> Iterator[tuple[Path, int] | OSError]:
        """The files to read with their sizes, and the errors of folders and files that cannot be looked at."""
        self._left_out.clear()
        self._links = 0
        for path in _walk(self._folder) if self._files is None else self._files:
            if isinstance(path, OSError):
                yield path
                continue
            try:
                about = path.stat() if self._files is not None else path.lstat()
            except OSError as error:
                yield error
                continue
            if stat.S_ISLNK(about.st_mode):
                self._links += 1
            elif stat.S_ISREG(about.st_mode) and (self._every or is_text(path.name)):
                yield path, about.st_size
            else:
                self._left_out[path.suffix.lower() or "without ending"] += 1

    def _document(self, path: Path, name: str) -> dict[str, Any]:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_size > MAX_FILE_BYTES:
                raise Unusable("file too large", f"more than {MAX_FILE_BYTES // 2**20} MiB")
            content = file.read(MAX_FILE_BYTES + 1)
        title, text = _title_and_text(content, path.suffix.lower())
        if not text.strip():
            raise Unusable("empty text")
        modified = datetime.fromtimestamp(about.st_mtime, UTC).isoformat(timespec="seconds")
        return {"id": name, "title": title or Path(name).stem, "text": text, "path": name, "modified": modified}

    def _remark(self) -> str:
        parts = (
            [f"{self._left_out.total():,} files of other kinds ({_counts(self._left_out)})"] if self._left_out else []
        )
        parts += [f"{self._links:,} symbolic links"] if self._links else []
        return f"{self.name}: left out {' and '.join(parts)}{self._pdf_hint()}" if parts else ""

    def _nothing(self) -> str:
        found = [_counts(self._left_out)] if self._left_out else []
        found += [f"{self._links:,} symbolic links, which are not followed"] if self._links else []
        if not found:
            return f"{self.name} is an empty folder; give one that holds {KINDS} files"
        return (
            f"{self.name} holds no {KINDS} file, only {' and '.join(found)}{self._pdf_hint()}; give tables by their "
            f"names (such as '{self._folder}/*.csv'), or read every file as text with --format text"
        )

    def _pdf_hint(self) -> str:
        return "; for PDF: pip install 'epic-search[pdf]'" if self._left_out[PDF] else ""


def _counts(kinds: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    return shown + (", ..." if len(kinds) > 5 else "")


def _walk(root: Path) -> Iterator[Path | OSError]:
    """All that is no folder below a folder, by name; errors of folders that cannot be looked into. Follows no link."""
    pending = [(str(root), True)]
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            yield Path(path)
            continue
        try:
            with os.scandir(path) as entries:
                inside = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield error
            continue
        pending += [(e.path, e.is_dir(follow_symlinks=False)) for e in inside if not is_hidden(e.name)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith(".") or name in VERSION_CONTROL


def _title_and_text(content: bytes, suffix: str) -> tuple[str, str]:
    """What a file of this kind says of its title, or "", and its text."""
    if suffix == PDF and pdf.can_read():
        return pdf.title_and_text(content)
    text = _decoded(content, html.charset(content) if suffix in HTML else "utf-8").replace("\r\n", "\n")
    if suffix in HTML:
        return html.title_and_text(text)
    if suffix in MARKDOWN:
        return markdown_title(text), text
    return rst_title(text) if suffix == ".rst" else "", text


def _decoded(content: bytes, encoding: str) -> str:
    if content.startswith(UTF16_BOMS):
        encoding = "utf-16"
    elif b"\0" in content:
        raise Unusable("binary file")
    elif content.startswith(BOM):
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unusable(f"not {encoding.upper()}", f"byte {error.start + 1}") from error
    except LookupError as error:
        raise Unusable("unknown encoding", encoding) from error
