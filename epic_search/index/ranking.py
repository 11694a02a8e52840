"""From the passages that a store finds to a ranking: one match a document, in an order that every page shares.

The order is total: by score, then by id. A list of the first n is the beginning of every longer one, whatever its
length. Equal scores at its end are looked at until all of them are known. And how far a search looks does not depend
on n: a fused ranking is made of prefetches of a fixed depth, and a dense one, which a search graph, codes or short
vectors make inexact, of what a search of one tier finds. What those do not reach comes after it, from prefetches of
four times that depth or from the next tier, and so on.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from epic_search.index.filters import Filter
from epic_search.index.store.edge_worker import NEXT_TIER, TIER
from epic_search.index.store.fusion import REACH
from epic_search.index.store.protocol import Fusion, Match, StoreQuery, VectorStore, is_ours

DEEPER = NEXT_TIER  # how many times more is asked for when it was too little
SPARE = 8  # matches asked for beyond those needed, among which equal scores mostly end
Key = Callable[[Match], Hashable]
Kind = Literal["fused", "dense", "lexical"]


@dataclass(slots=True)
class _Ranking:
    """The ranking of one query so far. `kept`: best match by key, from depths that were exhausted."""

    query: StoreQuery
    kept: dict[Hashable, Match] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)


def rank(
    store: VectorStore,
    queries: Sequence[StoreQuery],
    *,
    need: int,
    passages: int,
    key: Key,
    fusion: Fusion,
    min_score: float | None = None,
    filter: Filter | None = None,
    fields: Sequence[str] | None = None,
) -> list[list[Match]]:
    """For each query the first `need` best matches of different keys, best first; fewer where there are no more.

    `passages`: how many the store holds, or held a moment ago. `fields`: what matches carry of their payload; `id`
    and `passage` must be among it.
    """
    rankings = [_Ranking(query) for query in queries]
    search = _Search(store, need=need, key=key, min_score=min_score, options={"filter": filter, "fields": fields})
    for kind in get_args(Kind):
        some = [ranking for ranking in rankings if _kind(ranking.query) == kind]
        search.complete(some, kind, passages=passages, fusion=fusion)
    return [_above(ranking.matches[:need], min_score) for ranking in rankings]


@dataclass(frozen=True, slots=True)
class _Search:
    """What is the same for all queries, however far the search for them looks."""

    store: VectorStore
    need: int
    key: Key
    min_score: float | None
    options: dict[str, Any]

    def complete(self, unfinished: list[_Ranking], kind: Kind, *, passages: int, fusion: Fusion) -> None:
        """Complete rankings of one kind."""
        limit, tier = 2 * self.need + SPARE, TIER
        while unfinished and passages:
            # As much as is found at this depth; of words, one more than there can be tells that there are no more.
            most = {"fused": 2 * REACH * fusion.depth + 1, "dense": tier, "lexical": passages + 1}[kind]
            limit = min(limit, most)
            found = self.store.search(
                [ranking.query for ranking in unfinished], limit=limit, fusion=fusion, **self.options
            )
            if max(map(len, found)) > passages:
                passages *= DEEPER  # more were stored since they were counted
            is_deepest = kind != "fused" or fusion.depth >= passages
            pairs = list(zip(unfinished, found, strict=True))
            for ranking, matches in pairs:
                self._take(ranking, matches, are_all=len(matches) < limit, is_exhausted=limit == most)
            unfinished = [
                ranking
                for ranking, matches in pairs
                if not self._suffices(ranking, matches) and not (is_deepest and len(matches) < limit)
            ]
            if limit == most:
                fusion, tier = replace(fusion, depth=fusion.depth * DEEPER), tier * DEEPER
            limit *= DEEPER

    def _take(self, ranking: _Ranking, matches: list[Match], *, are_all: bool, is_exhausted: bool) -> None:
        """Add matches to what is kept. Unless they are all, more may follow with the score of the last one."""
        settled = matches if are_all else [match for match in matches if match.score > matches[-1].score]
        ranking.matches = [*ranking.kept.values(), *_best(settled, self.key, beside=ranking.kept)]
        if are_all or is_exhausted:
            ranking.kept = {self.key(match): match for match in ranking.matches}

    def _suffices(self, ranking: _Ranking, matches: list[Match]) -> bool:
        """Whether there is as much as is needed, or what follows is below the score that is wanted."""
        is_below = self.min_score is not None and bool(matches) and matches[-1].score < self.min_score
        return is_below or len(ranking.matches) >= self.need


def _kind(query: StoreQuery) -> Kind:
    return "lexical" if query.dense_E is None else "dense" if query.sparse is None else "fused"


def _best(matches: Sequence[Match], key: Key, *, beside: dict[Hashable, Match]) -> list[Match]:
    """The best match of each key that is not kept already; equal scores in the order of ids and passages."""
    best: dict[Hashable, Match] = {}
    passages = [match for match in matches if is_ours(match.payload)]
    for match in sorted(passages, key=lambda m: (-m.score, m.payload["id"], m.payload["passage"])):
        if (mine := key(match)) not in beside:
            best.setdefault(mine, match)
    return list(best.values())


def _above(matches: list[Match], min_score: float | None) -> list[Match]:
    return matches if min_score is None else [match for match in matches if match.score >= min_score]
