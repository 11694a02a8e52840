"""Work in a thread of its own, which is waited for later, or never."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begun(work: Callable[[], T]) -> Callable[[], T]:
    """Begin with the work; what is returned waits for its result, or raises what it raised.

    The thread ends with the work. It keeps no process from ending.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="begun", daemon=True).start()
    return future.result
