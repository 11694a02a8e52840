"""A request that is being answered: until when, and whether somebody still waits for the answer.

The request's own thread takes its ticket from the context. What makes it wait (a `Batcher`) waits through the ticket,
so that the event loop can end the wait from outside when the client has gone.
"""

import time
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from threading import Lock
from typing import Any, TypeVar

Result = TypeVar("Result")


class Late(Exception):
    """The request's time is over."""


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


class Ticket:
    """One request's. `seconds`: how long it may take from now on."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._lock = Lock()
        self._waiting_for: Future[Any] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Let the thread go that waits under this ticket, now or later."""
        with self._lock:
            self._is_cancelled = True
            if self._waiting_for is not None:
                self._waiting_for.cancel()

    def wait(self, future: "Future[Result]") -> Result:
        """The future's result; raises Late after the deadline and Abandoned after `cancel`, having cancelled it."""
        with self._lock:
            self._waiting_for = future
            if self._is_cancelled:
                future.cancel()
        try:
            return future.result(timeout=max(0.0, self._deadline - time.monotonic()))
        except CancelledError as error:
            raise Abandoned from error
        except TimeoutError as error:
            if not future.cancel() and not future.cancelled():
                return future.result()  # it came at the last moment
            raise Late from error


current_ticket: ContextVar[Ticket | None] = ContextVar("current_ticket", default=None)


def wait(future: "Future[Result]") -> Result:
    """The future's result, under the ticket of this context where there is one."""
    ticket = current_ticket.get()
    return future.result() if ticket is None else ticket.wait(future)
