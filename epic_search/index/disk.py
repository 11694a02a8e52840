"""Disk space: checked before writing, because the engine's process dies where a mapped page finds no room."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from epic_search.errors import Unavailable, UserError

# Qdrant's engine makes files of 32 MiB, three for an empty store, and fills them later.
RESERVE_BYTES = 128 * 2**20
ADVICE = "what was stored is kept: free some space and repeat the command"


def require_space(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes and a reserve are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < RESERVE_BYTES + needed:
        raise UserError(
            f"{folder} has {free / 2**20:,.0f} MiB of free disk space and the next step needs "
            f"{(RESERVE_BYTES + needed) / 2**20:,.0f}; {ADVICE}"
        )


def disk_full(folder: Path) -> Unavailable:
    """The error for a disk that was full all the same."""
    return Unavailable(f"the disk that holds {folder} is full; {ADVICE}")


def disk_usage(folder: Path) -> int:
    """Bytes that a folder takes on the disk (the engine's files are larger than what is written in them)."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a running index replaces files meanwhile
                total += (Path(parent) / name).lstat().st_blocks * 512
    return total
