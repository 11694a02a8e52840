"""What `query --explain` says of what was taught: the pairs that a query used, and how its hits' ranks changed."""

from typing import TYPE_CHECKING

from epic_search.cli import console

if TYPE_CHECKING:
    from epic_search.index.answer import TaughtExplanation


def print_taught(taught: "TaughtExplanation") -> None:
    """For a person, beside the hits."""
    from epic_search.index.answer import DEPTH

    shown = sum(pair.shown for pair in taught.pairs)
    said = f"{taught.fixed} stored with the index" if taught.fixed else f"{shown} nearest of those taught"
    console.note(f"demonstrations in the prompt: {said if taught.fixed or shown else 'none'}")
    if not taught.pairs:
        console.note("taught pairs near to this query: none that count")
    for pair in taught.pairs:
        moved = f", moved by {taught.boost * pair.weight:.2f}" if pair.weight else ""
        console.note(f"- {pair.query!r} -> {pair.label}: similarity {pair.similarity:.2f}{moved}")
    changed = {id: ranks for id, ranks in taught.ranks.items() if ranks[0] != ranks[1]}
    for id, (now, without) in changed.items():
        console.note(f"{id}: rank {now}, without all this {without or f'beyond {DEPTH}'}")
    if not changed:
        console.note("every hit has the rank that it has without all this")
