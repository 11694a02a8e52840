"""One process at a time per index: a lock file that says who holds it."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from epic_search.errors import Unavailable, UserError

LOCK_FILE = "lock"
ORPHAN_SECONDS = 10.0  # how long to wait for the child of a killed process


class Lock:
    """The lock of an index folder, held until `close` and until every child that inherited `fd` has ended.

    The kernel drops it when its holders end: what a killed process leaves never has to be removed by hand.
    """

    def __init__(self, folder: Path, *, wait_seconds: float = 0.0) -> None:
        """Take the lock, waiting up to `wait_seconds`; raises UserError naming the process that holds it."""
        path = folder / LOCK_FILE
        start = time.monotonic()
        while True:
            self.fd = _open(path)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder, has_ended = _holder(self.fd)
                os.close(self.fd)
                if time.monotonic() - start >= max(wait_seconds, ORPHAN_SECONDS if has_ended else 0.0):
                    raise Unavailable(
                        f"index '{folder.name}' is in use by {holder}; wait until it ends, or stop it"
                    ) from None
                time.sleep(0.02)
                continue
            if _is_file(self.fd, path):
                break
            os.close(self.fd)  # the index was deleted, and its lock file with it, while we waited
        self._path = path
        self._say({})

    def announce(self, url: str) -> None:
        """Say to other processes where this one answers for the index; see `served_at`."""
        self._say({"url": url})

    @property
    def is_in_place(self) -> bool:
        """Whether the index is still there: not deleted since, nor made again."""
        return _is_file(self.fd, self._path)

    def _say(self, more: dict[str, str]) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()} | more).encode(), 0)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self.fd)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def served_at(folder: Path) -> str | None:
    """The URL where a process that holds the index's lock answers for it; None when none does.

    What a killed process announced counts no longer: its lock is free.
    """
    try:
        fd = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = json.loads(os.pread(fd, 1000, 0))
        url, host = content["url"], content["host"]
        if host != socket.gethostname():
            return None
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ValueError, KeyError, TypeError):
        return None  # no server has it
    except BlockingIOError:
        return str(url)
    finally:
        os.close(fd)
    return None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write in {path.parent}: {error.strerror}; an index needs a folder that you may write to"
        ) from error


def _is_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _holder(fd: int) -> tuple[str, bool]:
    """Who holds the lock, in words, and whether that process has ended and only its child goes on."""
    try:
        content = json.loads(os.pread(fd, 1000, 0))
        pid, host = int(content["pid"]), str(content["host"])
    except (ValueError, KeyError, TypeError):
        return "another process", False  # it has taken the lock, but has not written its number yet
    if host != socket.gethostname():
        return f"process {pid} on {host}", False
    if pid == os.getpid():
        return f"this process ({pid})", False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return f"the store of process {pid}, which was killed and whose last write is not done", True
    except PermissionError:
        pass  # it runs, as another user
    serves = f", which serves it at {content['url']}" if "url" in content else ""
    return f"process {pid}{serves}", False
