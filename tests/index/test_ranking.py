"""A ranking made of what a store finds, while others write to that store."""

from types import SimpleNamespace

import numpy as np

from epic_search.index.ranking import rank
from epic_search.index.store.edge_worker import tier
from epic_search.index.store.protocol import RRF, Match, StoreQuery

ENOUGH = 20  # requests to the store


class Growing(SimpleNamespace):
    """A store of `held` passages, whose scores fall with their numbers."""

    def search(self, queries, *, limit, **_):
        self.asked += 1
        assert self.asked < ENOUGH, f"a ranking asks again and again for {limit} of {self.held}"
        matches = [
            Match(f"{n:04}", 1 / (n + 1), {"id": f"d{n:04}", "passage": 0}) for n in range(min(limit, self.held))
        ]
        return [matches for _ in queries]


class Inexact(SimpleNamespace):
    """A store of `held` passages, whose searches miss some: the more, the less far they look."""

    def search(self, queries, *, limit, **_):
        seen = [n for n in range(self.held) if n % 7 or tier(limit) >= self.held or n < tier(limit) // 10]
        return [
            [Match(f"{n:04}", 1 / (n + 1), {"id": f"d{n:04}", "passage": 0}) for n in seen[:limit]] for _ in queries
        ]


def test_pages_fit_together_though_longer_ones_look_further():
    query, options = StoreQuery(np.ones(1, np.float32)), {"passages": 2000, "key": lambda m: m.id, "fusion": RRF}
    [whole] = rank(Inexact(held=2000), [query], need=2000, **options)
    assert len({match.id for match in whole}) == 2000, "nothing twice, and nothing missed"
    for need in (1, 10, 124, 125, 300, 700, 1900):
        assert rank(Inexact(held=2000), [query], need=need, **options) == [whole[:need]]


def test_a_store_that_holds_more_than_it_did_when_it_was_counted():
    """As on a server, where an index is searched while it is being made."""
    for held in (11, 40, 5000):
        store = Growing(held=held, asked=0)
        query = StoreQuery(np.ones(1, np.float32))
        [found] = rank(store, [query], need=100, passages=10, key=lambda match: match.id, fusion=RRF)
        assert [match.id for match in found] == [f"{n:04}" for n in range(min(100, held))]
