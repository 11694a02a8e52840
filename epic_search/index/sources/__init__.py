"""Where documents come from: one file for each kind of source, and here the choice among them."""

import glob
import stat
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from epic_search.errors import UserError
from epic_search.index.sources import parquet, text_files
from epic_search.index.sources.data_file import ENDINGS, DataFile, ending
from epic_search.index.sources.dataset import PREFIX, SAVED, DatasetSource
from epic_search.index.sources.parquet import ParquetSource
from epic_search.index.sources.protocol import Format, Source
from epic_search.index.sources.stream import unreadable
from epic_search.index.sources.text_files import TextFiles

STDIN = "-"


def open_sources(names: Sequence[str], *, format: Format | None) -> list[Source]:
    """What each name stands for: a file, a folder, a pattern, `-` for standard input, hf:NAME for a data set.

    Nothing is read yet but names and first bytes. Raises UserError for what is not there.
    """
    return [source for name in names for source in _open(name, format)]


def _open(name: str, format: Format | None) -> list[Source]:
    if name.startswith(PREFIX) or format == "dataset":
        return [DatasetSource(name.removeprefix(PREFIX), name=name)]
    if name == STDIN:
        return [DataFile(None, name="standard input", format=format)]
    path = Path(name).expanduser()
    if glob.has_magic(name) and not _exists(path):
        return _matching(path, format, name=name)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not stat.S_ISDIR(mode):
        return [_file(path, format, name=name)]
    if any((path / saved).is_file() for saved in SAVED):
        return [DatasetSource(name, name=name)]
    if format not in (None, "text"):
        raise UserError(f"{path} is a folder, and not of format {format}; name its files, such as '{path}/*.{format}'")
    return [TextFiles(path, name=name, every=format == "text")]


def _file(path: Path, format: Format | None, *, name: str) -> Source:
    is_file = path.is_file()
    try:
        if format is None and is_file:
            with path.open("rb") as file:
                format = "parquet" if file.read(4) == parquet.MAGIC or ending(name) == ".parquet" else None
    except OSError as error:
        raise unreadable(path, error) from error
    if format == "text" or (format is None and path.suffix.lower() in {*text_files.TEXT, text_files.PDF}):
        return TextFiles(path.parent, name=name, files=[path], every=format == "text")
    if format == "parquet":
        if not is_file:
            raise UserError(f"{name} is a pipe, and Parquet is read from its end; save it as a file first")
        return ParquetSource(path, name=name)
    return DataFile(path, name=name, format=format)


def _matching(pattern: Path, format: Format | None, *, name: str) -> list[Source]:
    """The files that match a pattern; those of text as one source, below the part of the path without wildcards."""
    fixed = list(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    root, wild = Path(*fixed), pattern.parts[len(fixed) :]
    try:
        found = sorted(root.glob(str(Path(*wild, "*" if wild[-1] == "**" else ""))))
    except (OSError, ValueError) as error:
        raise unreadable(pattern, error) from error
    files = [path for path in found if path.is_file() and not _is_left_out(path, root)]
    if not files:
        raise UserError(f"no file matches '{name}'; in a pattern * stands for any name and ** for folders of any depth")
    tables = [path for path in files if format != "text" and (format or ending(path.name) in (*ENDINGS, ".parquet"))]
    texts = [path for path in files if path not in set(tables)]
    sources = [_file(path, format, name=str(path)) for path in tables]
    if format == "text" or not tables or any(text_files.is_text(path.name) for path in texts):
        sources.append(TextFiles(root, name=name, files=texts, every=format == "text"))
    return sources


def _is_left_out(path: Path, root: Path) -> bool:
    inside = path.relative_to(root)
    on_the_way = [root / parent for parent in inside.parents][:-1]
    return any(map(text_files.is_hidden, inside.parts)) or any(step.is_symlink() for step in [path, *on_the_way])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except ValueError:
        return False
