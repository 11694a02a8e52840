"""What tasks and conditions are called: the six kinds of task, by our name and mteb's, and the controls."""

from typing import Literal

Kind = Literal["retrieval", "reranking", "sts", "pair_classification", "classification", "clustering"]

MTEB_TYPES: dict[Kind, str] = {
    "retrieval": "Retrieval",
    "reranking": "Reranking",
    "sts": "STS",
    "pair_classification": "PairClassification",
    "classification": "Classification",
    "clustering": "Clustering",
}
KINDS: tuple[Kind, ...] = tuple(MTEB_TYPES)
SEARCH_KINDS: frozenset[Kind] = frozenset({"retrieval", "reranking"})
CLASS_KINDS: frozenset[Kind] = frozenset({"classification", "clustering"})

# Demonstrations that must not help: pairs put together wrongly, true pairs of another task, vectors of nothing.
Control = Literal["shuffled", "wrong-task", "random"]
CONTROLS: tuple[Control, ...] = ("shuffled", "wrong-task", "random")

ClassDemonstrations = Literal["examples", "names", "all-names"]
"""What demonstrates a class: two texts of it, a text and its name, or that and the names of all other classes."""
