"""How many requests are answered at once, and for how long: each in a thread of its own, under a ticket."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from starlette.requests import Request

from epic_search.serving.problems import busy, late
from epic_search.serving.ticket import Abandoned, Ticket, current_ticket

Answer = TypeVar("Answer")
CLIENT_HAS_GONE = 499  # for the log alone: nobody sees it


class ClientHasGone(Exception):
    """Nobody waits for the answer."""


class Gate:
    """Lets `places` requests in at a time, and gives each `seconds`."""

    def __init__(self, *, places: int, seconds: float) -> None:
        self.places = places
        self.seconds = seconds
        self.inside = 0
        self._threads = ThreadPoolExecutor(max_workers=places, thread_name_prefix="request")

    async def answer(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """What `work` returns, from a thread.

        Raises ApiError 429 at once when all places are taken, ApiError 504 after the time, and ClientHasGone. In the
        last two cases the place is free again when the work, which is told to stop waiting, has ended.
        """
        if self.inside == self.places:
            raise busy()
        self.inside += 1
        ticket = Ticket(self.seconds)
        context = copy_context()
        context.run(current_ticket.set, ticket)
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._threads, context.run, work)
        working.add_done_callback(self._leave)
        gone = loop.create_task(_until_gone(request))
        either: set[asyncio.Future[Any]] = {working, gone}
        try:
            await asyncio.wait(either, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise ClientHasGone
            raise late()
        finally:
            gone.cancel()
            if not working.done():
                ticket.cancel()

    def close(self) -> None:
        """Let nobody in any more, and wait for those inside."""
        self._threads.shutdown()

    def _leave(self, work: "asyncio.Future[Answer]") -> None:
        self.inside -= 1
        with suppress(Abandoned, asyncio.CancelledError):
            work.exception()  # whoever waited has been told, or has gone


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
