"""Where indexes live: the home folder, names, the list of indexes, deletion."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from epic_search.errors import UserError
from epic_search.index.contents import LIST_FILE, STORE_FOLDER
from epic_search.index.disk import disk_usage
from epic_search.index.lock import LOCK_FILE, Lock
from epic_search.index.manifest import MANIFEST_FILE, Manifest
from epic_search.index.prompts import PROMPT_FILE
from epic_search.index.store.connection import Server
from epic_search.index.taught_folder import TAUGHT_FOLDER, UNFINISHED_FOLDER

Home = Path | Server  # what holds indexes, by name

ASIDE_FOLDER = "aside"  # damaged files that a repair has set aside
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """One index as its manifest describes it, with its folder and size on the disk in bytes (None on a server).

    `cut_to`: the dimensions that its encoder's vectors are cut to, None for whole ones.
    `status`: "complete", "indexing" (a run goes on, or was cut short) or "unreadable", with its `problem`.
    """

    name: str
    path: Path | None
    status: str
    documents: int
    passages: int
    encoder: str
    task: str | None
    demonstrations: int
    size: int | None
    updated: str
    problem: str | None = None
    cut_to: int | None = None


def home() -> Path:
    """The folder that holds the indexes: EPIC_SEARCH_HOME, or `indexes` in the current folder."""
    return Path(os.environ.get("EPIC_SEARCH_HOME") or "indexes")


def index_folder(name: str, where: Path | None) -> Path:
    """The folder of an index, whether it exists or not; raises UserError for a name that cannot be one."""
    check_name(name)
    return (where if where is not None else home()) / name


def check_name(name: str) -> None:
    """Raise UserError for a name that no index can have."""
    if not NAME.fullmatch(name) or name.endswith(".") or name.split(".")[0].lower() in DEVICES:
        raise UserError(
            f"{name!r} cannot name an index; use up to 100 letters, digits, '-', '_' and '.', beginning with "
            "a letter or digit, and no device name such as 'con'"
        )


def existing_index(name: str, where: Path | None) -> Path:
    """The folder of an index that exists; raises UserError listing those that do."""
    folder = index_folder(name, where)
    if _is_index(folder):
        return folder
    others = ", ".join(index_names(folder.parent)) or "none yet"
    raise UserError(
        f"no index '{name}' in {folder.parent} (there: {others}); make it with 'epic-search index FILE --name {name}'"
    )


def target_folder(name: str, where: Path | None) -> Path:
    """The folder to index into; raises UserError when something else is there already."""
    folder = index_folder(name, where)
    if folder.is_symlink() or folder.is_file():
        raise UserError(f"{folder} is not a folder; choose another --name")
    left_by_crash = {LOCK_FILE, f"{MANIFEST_FILE}.tmp"}  # of a run killed before it had a manifest
    if folder.is_dir() and not _is_index(folder) and {path.name for path in folder.iterdir()} - left_by_crash:
        raise UserError(f"{folder} is not an index but holds other things; choose another --name")
    return folder


def make_folder(folder: Path) -> None:
    """Make an index's folder where it is not there yet; raises UserError when that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; choose another home (EPIC_SEARCH_HOME)"
        ) from error


def list_indexes(where: Home | None = None) -> list[IndexInfo]:
    """All indexes of a home folder or of a server, by name."""
    if isinstance(where, Server):
        from epic_search.index.server_place import list_collections

        return list_collections(where)
    folder = where if where is not None else home()
    return [_info(folder / name) for name in index_names(folder)]


def delete_index(name: str, where: Home | None = None) -> None:
    """Delete an index of a home folder or of a server; raises UserError when there is none or a process has it open.

    Only files that an index consists of are removed, the manifest last: a folder that is not an index is
    never touched, and a deletion that was cut short can be repeated.
    """
    if isinstance(where, Server):
        from epic_search.index.server_place import delete_collections

        return delete_collections(name, where)
    folder = existing_index(name, where)
    with Lock(folder):
        for inside in (STORE_FOLDER, TAUGHT_FOLDER, UNFINISHED_FOLDER, ASIDE_FOLDER):
            shutil.rmtree(folder / inside, ignore_errors=True)
        for name in (LIST_FILE, PROMPT_FILE, MANIFEST_FILE, LOCK_FILE):
            for file in (f"{name}-journal", f"{name}.tmp", name):
                (folder / file).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def index_names(folder: Path) -> list[str]:
    """The names of the indexes in a home folder, in order."""
    return sorted(path.name for path in folder.iterdir() if _is_index(path)) if folder.is_dir() else []


def _is_index(folder: Path) -> bool:
    """Other programs write a manifest.json too: ours has a fingerprint or, if damaged, a list beside it."""
    manifest = folder / MANIFEST_FILE
    if folder.is_symlink() or not manifest.is_file():
        return False
    return b'"fingerprint"' in manifest.read_bytes() or (folder / LIST_FILE).is_file()


def _info(folder: Path) -> IndexInfo:
    size = disk_usage(folder)
    try:
        manifest = Manifest.load(folder)
    except UserError as error:
        return IndexInfo(folder.name, folder, "unreadable", 0, 0, "", None, 0, size, "", problem=str(error))
    return IndexInfo(
        name=folder.name,
        path=folder,
        status=manifest.status,
        documents=manifest.documents,
        passages=manifest.passages,
        encoder=manifest.encoder,
        task=manifest.task,
        demonstrations=len(manifest.demonstrations),
        size=size,
        updated=manifest.updated,
        cut_to=manifest.cut_to,
    )
