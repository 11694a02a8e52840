"""Micro-batching: who shares a batch, in what order, and what becomes of calls that fail, leave or wait too long."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from epic_search.serving.batcher import Batcher, Full
from epic_search.serving.ticket import Abandoned, Late, Ticket, current_ticket


class Worker:
    """Doubles numbers; the first batch waits until `go` is set, so that calls gather behind it."""

    def __init__(self, **options: Any) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.batcher: Batcher[int, int] = Batcher(
            self.work, name="test", **{"budget": 4, "capacity": 1000, "window": 0.0} | options
        )
        self.threads = ThreadPoolExecutor()

    def work(self, key: Hashable, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.started.set()
        assert self.go.wait(timeout=240)
        if -1 in items:
            raise ValueError("minus one")
        return [2 * item for item in items]

    def ask(self, *items: int, ticket: Ticket | None = None, **options: Any) -> "Future[list[int]]":
        """A call in a thread; returns when it waits."""
        waiting = self.batcher.waiting
        context = copy_context()
        context.run(current_ticket.set, ticket)
        asked = self.threads.submit(context.run, lambda: self.batcher(items, **options))
        until(lambda: asked.done() or self.batcher.waiting > waiting)
        return asked

    def busy(self) -> "Future[list[int]]":
        """A call that the worker is at work on."""
        asked = self.threads.submit(self.batcher, [0])
        assert self.started.wait(timeout=240)
        return asked


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_calls_that_come_while_the_worker_is_at_work_share_a_batch() -> None:
    worker = Worker()
    first = worker.busy()
    others = [worker.ask(n) for n in (1, 2, 3)]
    worker.go.set()
    assert [asked.result() for asked in (first, *others)] == [[0], [2], [4], [6]]
    assert worker.batches == [[0], [1, 2, 3]]


def test_a_long_call_does_not_hold_up_a_short_one() -> None:
    worker = Worker()
    worker.busy()
    long, short = worker.ask(*range(1, 11)), worker.ask(100)
    worker.go.set()
    assert short.result() == [200]
    assert long.result() == [2 * n for n in range(1, 11)]
    assert worker.batches[1] == [1, 100, 2, 3]  # the budget is four: one of each, then the rest in turn


def test_a_batch_keeps_to_its_budget_but_an_item_larger_than_that_is_done() -> None:
    worker = Worker()
    worker.busy()
    asked = worker.ask(1, 2, 3, 4, costs=[3, 1, 2, 9])
    worker.go.set()
    assert asked.result() == [2, 4, 6, 8]
    assert worker.batches == [[0], [1, 2], [3], [4]]


def test_different_keys_never_share_a_batch() -> None:
    worker = Worker()
    worker.busy()
    asked = [worker.ask(n, key=key) for n, key in ((1, "a"), (2, "b"), (3, "a"))]
    worker.go.set()
    assert [one.result() for one in asked] == [[2], [4], [6]]
    assert worker.batches == [[0], [1, 3], [2]]


def test_a_mistake_in_one_call_is_told_to_nobody_else() -> None:
    worker = Worker()
    worker.busy()
    good, bad, also_good = worker.ask(1), worker.ask(-1), worker.ask(2)
    worker.go.set()
    assert (good.result(), also_good.result()) == ([2], [4])
    with pytest.raises(ValueError, match="minus one"):
        bad.result()


def test_what_nobody_waits_for_is_not_done() -> None:
    worker = Worker()
    worker.busy()
    ticket = Ticket(20)
    gone, other = worker.ask(1, ticket=ticket), worker.ask(2)
    ticket.cancel()
    with pytest.raises(Abandoned):
        gone.result()
    worker.go.set()
    assert other.result() == [4]
    assert worker.batches == [[0], [2]]


def test_a_call_waits_no_longer_than_its_ticket_allows() -> None:
    worker = Worker()
    worker.busy()
    with pytest.raises(Late):
        worker.ask(1, ticket=Ticket(0.05)).result(timeout=240)
    worker.go.set()


def test_more_than_the_capacity_is_turned_away_and_a_large_call_alone_is_not() -> None:
    worker = Worker(capacity=5)
    worker.busy()
    large = worker.ask(*range(1, 9))
    with pytest.raises(Full):
        worker.ask(1).result()
    worker.go.set()
    assert large.result() == [2 * n for n in range(1, 9)]
    assert worker.batcher([7]) == [14]


def test_close_finishes_what_waits() -> None:
    worker = Worker()
    worker.busy()
    asked = worker.ask(1)
    worker.go.set()
    worker.batcher.close()
    assert asked.result() == [2]


def test_nothing_asked_is_nothing_done() -> None:
    worker = Worker()
    assert worker.batcher([]) == []
    assert worker.batches == []
