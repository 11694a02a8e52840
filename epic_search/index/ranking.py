"""From the passages that a store finds to a ranking: one match a document, in an order that every page shares.

The order is total: by score, then by id. A list of the first n is the beginning of every longer one, whatever its
length: equal scores at its end are looked at until all of them are known, and a fused ranking is made of prefetches of
a fixed depth. What those do not reach comes after it, from prefetches of four times that depth, and so on.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from epic_search.index.filters import Filter
from epic_search.index.store.protocol import Fusion, Match, StoreQuery, VectorStore

DEEPER = 4  # how many times more is asked for when it was too little
SPARE = 8  # matches asked for beyond those needed, among which equal scores mostly end
Key = Callable[[Match], Hashable]


@dataclass(slots=True)
class _Ranking:
    """The ranking of one query so far. `kept`: best match by key, from prefetches that were exhausted."""

    query: StoreQuery
    kept: dict[Hashable, Match] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)
    is_complete: bool = False


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

    `passages`: how many the store holds, or held a moment ago. `fields`: what matches carry of their payload; `id` must
    be among it.
    """
    rankings = [_Ranking(query) for query in queries]
    is_fused = any(query.dense_E is not None and query.sparse is not None for query in queries)
    limit = 2 * need + SPARE
    unfinished = rankings if passages else []
    while unfinished:
        most = 2 * fusion.depth if is_fused else passages
        limit = min(limit, most + 1)  # one more than there can be tells that there are no more
        asked = [ranking.query for ranking in unfinished]
        found = store.search(asked, limit=limit, filter=filter, fields=fields, fusion=fusion)
        if max(map(len, found)) > passages:
            passages *= DEEPER  # more were stored since they were counted
        for ranking, matches in zip(unfinished, found, strict=True):
            are_all = len(matches) < limit
            settled = matches if are_all else [match for match in matches if match.score > matches[-1].score]
            ranking.matches = [*ranking.kept.values(), *_best(settled, key, beside=ranking.kept)]
            if are_all:
                ranking.kept = {key(match): match for match in ranking.matches}
            ranking.is_complete = (
                len(ranking.matches) >= need
                or (are_all and (not is_fused or fusion.depth >= passages))
                or (min_score is not None and bool(matches) and matches[-1].score < min_score)
            )
        unfinished = [ranking for ranking in unfinished if not ranking.is_complete]
        if is_fused and limit > most:
            fusion = replace(fusion, depth=fusion.depth * DEEPER)
        limit *= DEEPER
    return [_above(ranking.matches[:need], min_score) for ranking in rankings]


def _best(matches: Sequence[Match], key: Key, *, beside: dict[Hashable, Match]) -> list[Match]:
    """The best match of each key that is not kept already; equal scores in the order of ids and passages."""
    best: dict[Hashable, Match] = {}
    for match in sorted(matches, key=lambda m: (-m.score, m.payload["id"], m.payload.get("passage", 0))):
        if (mine := key(match)) not in beside:
            best.setdefault(mine, match)
    return list(best.values())


def _above(matches: list[Match], min_score: float | None) -> list[Match]:
    return matches if min_score is None else [match for match in matches if match.score >= min_score]
