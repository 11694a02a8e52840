"""What a verb says where torchrun, or `accelerate launch`, started several processes of it: as much as one would.

The first process speaks. A failure is told by the process that failed first; what follows from it in the others, which
wait for that process in vain, is not shown, and they end with the same exit code.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import wraps
from pathlib import Path

import typer

from epic_search.cli import console, options
from epic_search.errors import UserError

FAILURE = "epic-search/failure"  # in the store that all processes share: rank and exit code of the first that failed


def as_one(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that joins its other processes, if there are any, and of which only one is heard."""

    @wraps(verb)
    def run(*, device: options.Device, **arguments: object) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            verb(device=device, **arguments)
            return
        with _joined(device):
            verb(device=device, **arguments)

    return run


@contextmanager
def _joined(device: options.Device) -> Iterator[None]:
    rank = os.environ["RANK"]
    with nullcontext() if rank == "0" else _muted():
        with console.working("loading"):
            from epic_search.training import parallel
        store = parallel.meet()
        try:
            with parallel.group(store, device):
                yield
        except BaseException as error:
            mine = f"{rank} {_exit_code(error)}"
            first = store.compare_set(FAILURE, "", mine).decode()
            if first != mine:
                raise typer.Exit(int(first.split()[1])) from error
            raise


def _exit_code(error: BaseException) -> int:
    match error:
        case UserError():
            return console.EXIT_USER_ERROR
        case KeyboardInterrupt():
            return console.EXIT_INTERRUPTED
        case _:
            return 1


@contextmanager
def _muted() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
