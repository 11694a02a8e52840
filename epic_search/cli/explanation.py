"""What `query --explain` says: the taught pairs that a query used, and the ranks that its hits have without them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epic_search.cli import console

if TYPE_CHECKING:
    from epic_search.encoder import Prompt
    from epic_search.index import Hit, Searcher
    from epic_search.index.adaptation import Use
    from epic_search.index.ways import Ways

DEPTH = 100  # ranks that are looked at without demonstrations


@dataclass(frozen=True, slots=True)
class TaughtExplanation:
    """`fixed`: how many stored demonstrations were shown. `ranks`: of each hit, now and without, None beyond DEPTH."""

    ways: "Ways"
    fixed: int
    uses: "Sequence[Use]"
    ranks: dict[str, tuple[int, int | None]]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "demos": self.ways.demos,
            "boost": self.ways.boost,
            "fixed_demonstrations": self.fixed,
            "pairs": [
                {
                    "query": use.neighbour.pair.query,
                    "document": use.neighbour.pair.document,
                    "passage": use.neighbour.pair.passage,
                    "similarity": use.neighbour.similarity,
                    "shown": use.shown,
                    "weight": use.weight,
                }
                for use in self.uses
            ],
            "ranks": {id: {"now": now, "without": without} for id, (now, without) in self.ranks.items()},
        }

    def print(self) -> None:
        """For a person, beside the hits."""
        from epic_search.index.taught import label

        shown = sum(use.shown for use in self.uses)
        said = f"{self.fixed} stored with the index" if self.fixed else f"{shown} nearest of those taught"
        console.note(f"demonstrations in the prompt: {said if self.fixed or shown else 'none'}")
        if not self.uses:
            console.note("taught pairs near to this query: none that count")
        for use in self.uses:
            pair = use.neighbour.pair
            moved = f", moved by {self.ways.boost * use.weight:.2f}" if use.weight else ""
            console.note(f"- {pair.query!r} -> {label(pair)}: similarity {use.neighbour.similarity:.2f}{moved}")
        changed = {id: ranks for id, ranks in self.ranks.items() if ranks[0] != ranks[1]}
        for id, (now, without) in changed.items():
            console.note(f"{id}: rank {now}, without all this {without or f'beyond {DEPTH}'}")
        if not changed:
            console.note("every hit has the rank that it has without all this")


def explain_taught(
    searcher: "Searcher",
    query: str,
    hits: "Sequence[Hit]",
    *,
    offset: int,
    prompt: "Prompt | None",
    ways: "Ways",
    ask: "Callable[..., list[list[Hit]]]",
) -> TaughtExplanation:
    """Ask once more, under the task alone, and compare. `ask`: the search that found the hits, less its ways."""
    from epic_search.index.ways import Ways

    used = searcher.adapt([query], prompt=prompt, ways=ways).uses[0]
    (without,) = ask(k=max(DEPTH, offset + len(hits)), ways=Ways("none", boost=0.0), texts=False)
    ranks = {hit.id: rank for rank, hit in enumerate(without, 1)}
    fixed = len((prompt or searcher.prompt).demonstrations) if ways.demos == "fixed" else 0
    return TaughtExplanation(ways, fixed, used, {h.id: (n, ranks.get(h.id)) for n, h in enumerate(hits, offset + 1)})
