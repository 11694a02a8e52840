"""A stage of a pipeline: a function in a thread of its own, on one item at a time, in the order they come."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Stage(Generic[T]):
    """Works on an item while the caller makes the next. Use it in a `with` statement, which waits for its last item.

    Nothing queues up: an item is given when the one before is done. What the function raises is raised by the caller's
    next call here. After Ctrl-C, `stopping` asks the function to give up its item: nobody wants the result.
    """

    def __init__(self, function: Callable[[T], None]) -> None:
        self.stopping = False
        self._function = function
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._item: Future[None] | None = None

    def give(self, item: T) -> None:
        """Begin with an item as soon as the last one is done."""
        self.wait()
        self._item = self._thread.submit(self._function, item)

    def wait(self) -> None:
        """Wait until the last item is done; raises what that raised, once."""
        item, self._item = self._item, None
        if item is not None:
            item.result()

    def __enter__(self) -> "Stage[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An item that was given is worked on though others failed: what came before an error is not lost by it.
        self.stopping = kind is not None and not issubclass(kind, Exception)
        try:
            if not self.stopping:
                self.wait()
        finally:
            self._thread.shutdown()
