"""How an index uses what it was taught: a setting in its manifest, which a query may override."""

from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from epic_search.errors import UserError
from epic_search.index.folder import Home
from epic_search.index.manifest import Manifest
from epic_search.index.place import place_of, stored_manifest

Demos = Literal["fixed", "nearest", "none"]
"""A query's demonstrations: those stored with the index, the nearest of what was taught, or none."""

DEMOS_K = 4
BOOST = 1.0
LOCK_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ways:
    """`demos_k`: demonstrations in mode "nearest"; `boost`: how strongly taught pairs move a query, 0 for not at all.

    Raises UserError for numbers that cannot be.
    """

    demos: Demos = "fixed"
    demos_k: int = DEMOS_K
    boost: float = BOOST

    def __post_init__(self) -> None:
        if self.demos_k < 1:
            raise UserError(f"the number of demonstrations is {self.demos_k}; it must be at least 1")
        if not 0.0 <= self.boost < float("inf"):
            raise UserError(f"the boost is {self.boost}; it must be 0 (not at all) or a positive number")

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        demos: Demos | None = None,
        demos_k: int | None = None,
        boost: float | None = None,
    ) -> "Ways":
        """What is given; else what the index says; else the default. Demos "none" alone means no boost either."""
        if boost is None:
            boost = 0.0 if demos == "none" else manifest.boost
        if demos_k is None:
            demos_k = manifest.demos_k
        return cls(demos or manifest.demos, DEMOS_K if demos_k is None else demos_k, BOOST if boost is None else boost)


def set_ways(
    name: str,
    *,
    home: Home | None = None,
    demos: Demos | None = None,
    demos_k: int | None = None,
    boost: float | None = None,
) -> Ways:
    """Keep with an index how it uses what it is taught; what is None stays as it is. Returns all of it.

    Raises UserError when there is no such index, when another process has it open, and for numbers that cannot be.
    """
    with closing(place_of(name, home)) as place:
        if demos is None and demos_k is None and boost is None:
            return Ways.of(stored_manifest(place))
        with place.lock(wait_seconds=LOCK_WAIT_SECONDS):
            manifest = stored_manifest(place)
            ways = Ways.of(manifest, demos=demos, demos_k=demos_k, boost=boost)
            manifest.demos, manifest.demos_k, manifest.boost = ways.demos, ways.demos_k, ways.boost
            place.save_ways(manifest)
        return ways
