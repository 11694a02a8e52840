"""Micro-batching: the calls of many threads become few calls of one worker.

While the worker is at work, calls wait; then it takes as much of them as its budget holds, an item of each call in
turn, so that a call of a thousand items delays a call of one by no more than a batch. A call alone is taken at once.
Where several came together before, the worker waits `window` seconds for the others: clients that got their answers
from one batch ask again at almost the same time.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from epic_search.serving.ticket import wait

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 0.003  # seconds


class Full(Exception):
    """So much waits already that no more is taken."""


@dataclass(slots=True, eq=False)
class _Call(Generic[Item, Result]):
    """What a thread asked for. `todo`: place, item and cost of what no batch has taken yet; `left`: without result."""

    key: Hashable
    todo: deque[tuple[int, Item, int]]
    results: list[Result | None]
    left: int
    future: "Future[list[Result]]"

    @property
    def cost(self) -> int:
        """Of what is still to do."""
        return sum(cost for _, _, cost in self.todo)


class Batcher(Generic[Item, Result]):
    """Joins calls. `work(key, items)` gives a result for each item and runs in the worker's thread, one call at a time.

    `budget`: the cost that a batch may have, unless a single item costs more; `capacity`: the cost that may wait.
    """

    def __init__(
        self,
        work: Callable[[Hashable, list[Item]], Sequence[Result]],
        *,
        name: str,
        budget: int,
        capacity: int,
        window: float = WINDOW,
    ) -> None:
        self._work = work
        self._budget = budget
        self._capacity = capacity
        self._window = window
        self._calls: list[_Call[Item, Result]] = []  # those that wait longest come first
        self._changed = threading.Condition()
        self._is_closed = False
        self._worker = threading.Thread(target=self._run, name=name, daemon=True)
        self._worker.start()

    def __call__(
        self, items: Sequence[Item], *, costs: Sequence[int] | None = None, key: Hashable = None
    ) -> list[Result]:
        """The items' results, in order. Only items of equal keys share a batch; each costs 1 unless `costs` say more.

        Raises Full when too much waits, Late and Abandoned (see `ticket`), and what `work` raises for these items.
        """
        if not items:
            return []
        todo = deque(zip(range(len(items)), items, costs or [1] * len(items), strict=True))
        call = _Call[Item, Result](key, todo, [None] * len(items), len(items), Future())
        with self._changed:
            assert not self._is_closed, self._worker.name
            waiting = self._cost()
            if waiting and waiting + call.cost > self._capacity:
                raise Full
            self._calls.append(call)
            self._changed.notify_all()
        return wait(call.future)

    @property
    def waiting(self) -> int:
        """The cost of what waits."""
        with self._changed:
            return self._cost()

    def close(self) -> None:
        """Finish what waits, and end the worker."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._worker.join()

    def _run(self) -> None:
        sharing = 0  # calls in the batch before
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._is_closed)
                if not self._calls:
                    return
                if self._window and max(sharing, len(self._calls)) > 1:
                    self._changed.wait_for(lambda: self._cost() >= self._budget, timeout=self._window)
                batch = self._take()
            sharing = len({id(call) for call, _, _ in batch})
            if batch:
                self._do(batch)

    def _take(self) -> list[tuple[_Call[Item, Result], int, Item]]:
        """The next batch: items of the call that waits longest, and of those that can share a batch with it."""
        self._calls = [call for call in self._calls if not call.future.done()]  # not those nobody waits for
        turns = deque(call for call in self._calls if call.key == self._calls[0].key)
        batch: list[tuple[_Call[Item, Result], int, Item]] = []
        cost = 0
        while turns:
            call = turns.popleft()
            place, item, price = call.todo[0]
            if batch and cost + price > self._budget:
                break
            call.todo.popleft()
            batch.append((call, place, item))
            cost += price
            if call.todo:
                turns.append(call)
        served = {id(call) for call, _, _ in batch}
        unserved = [call for call in self._calls if id(call) not in served]
        self._calls = unserved + [call for call in self._calls if id(call) in served and call.todo]
        return batch

    def _do(self, batch: list[tuple[_Call[Item, Result], int, Item]]) -> None:
        calls = {id(call): call for call, _, _ in batch}
        try:
            results = self._work(batch[0][0].key, [item for _, _, item in batch])
        except BaseException as error:
            if len(calls) > 1:  # one call's mistake is not another's
                for mine in calls.values():
                    self._do([entry for entry in batch if entry[0] is mine])
            else:
                _settle(batch[0][0].future, error)
            return
        for (call, place, _), result in zip(batch, results, strict=True):
            call.results[place] = result
            call.left -= 1
        for call in calls.values():
            if not call.left:
                _settle(call.future, call.results)

    def _cost(self) -> int:
        return sum(call.cost for call in self._calls if not call.future.done())


def _settle(future: "Future[list[Result]]", outcome: list[Result | None] | BaseException) -> None:
    with suppress(InvalidStateError):  # cancelled: nobody waits for it
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)  # type: ignore[arg-type]  # no place is None any more
