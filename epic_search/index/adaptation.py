"""What a query becomes by what was taught: nearby pairs as demonstrations in its prompt, and a move of its vector.

Demonstrations need an encoder that was trained to read them; the move (see `feedback`) needs no training.

Shapes: Q queries, E dimensions of a vector as the index holds it, K pairs near a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from epic_search.index.feedback import NEIGHBOURS, expanded, moved, weights
from epic_search.index.store.protocol import Sparse
from epic_search.index.taught import Neighbour, Taught, as_stored

if TYPE_CHECKING:
    from epic_search.encoder import Encoder, Prompt
    from epic_search.index.lexical import Lexical
    from epic_search.index.ways import Ways

LEAST_WEIGHT = 0.01  # what counts less is left out


@dataclass(frozen=True, slots=True)
class Use:
    """How a query used a pair near it: shown in its prompt, and with which weight (0 to 1) in its move."""

    neighbour: Neighbour
    shown: bool
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """Query vectors (Q, E), and for each query the pairs it used, nearest first."""

    vectors_QE: np.ndarray
    uses: list[list[Use]]
    boost: float

    def expanded(self, queries: Sequence[Sparse | None], lexical: "Lexical") -> list[Sparse | None]:
        """The queries' BM25 terms with those of the passages that they were moved towards.

        None stays None, and a query that was not moved stays itself.
        """
        found: list[Sparse | None] = []
        for query, used in zip(queries, self.uses, strict=True):
            moving = [use for use in used if use.weight] if self.boost else []
            passages = [lexical.of_query(use.neighbour.pair.passage) for use in moving]
            shares = [self.boost * use.weight for use in moving]
            found.append(expanded(query, passages, shares) if query is not None and moving else query)
        return found


def adapt(
    queries: Sequence[str],
    *,
    encoder: "Encoder",
    prompt: "Prompt",
    task: str | None,
    taught: Taught | None,
    ways: "Ways",
) -> Adapted:
    """Queries under `prompt` ("fixed") or under its task with the nearest pairs or none, and moved by the boost.

    `task`: the index's own, which taught queries were encoded under. Raises UserError where `encode_queries` does.
    """
    base = prompt if ways.demos == "fixed" else encoder.prompt(task=prompt.task)
    if taught is None or not len(taught) or (ways.demos != "nearest" and not ways.boost):
        return Adapted(encoder.encode_queries(queries, prompt=base), [[] for _ in queries], 0.0)
    asked_QE = encoder.encode_queries(queries, prompt=encoder.prompt(task=task), whole=True)
    shown = ways.demos_k if ways.demos == "nearest" else 0
    near = taught.nearest(asked_QE, k=max(shown, NEIGHBOURS if ways.boost else 0))
    if shown:
        prompts = [_prompt(found[:shown], encoder=encoder, base=base, task=task) for found in near]
        vectors_QE = encoder.encode_queries(queries, prompts=prompts)
    elif base.task == task and not base.demonstrations:
        vectors_QE = as_stored(asked_QE, encoder.dim)
    else:
        vectors_QE = encoder.encode_queries(queries, prompt=base)
    reach = taught.reach() if ways.boost else None
    uses = [_uses(found, shown=shown, reach=reach) for found in near]
    return Adapted(_moved(vectors_QE, uses, boost=ways.boost), uses, ways.boost)


def _prompt(found: Sequence[Neighbour], *, encoder: "Encoder", base: "Prompt", task: str | None) -> "Prompt":
    """The base prompt with these pairs as demonstrations, the nearest last, beside the query."""
    pairs = found[::-1]
    demonstrations = tuple(neighbour.pair.demonstration for neighbour in pairs)
    if base.kind == "text" or base.task != task:  # the stored vectors are of another kind of prompt
        return encoder.prompt(task=base.task, demonstrations=demonstrations)
    vectors_SE = np.stack([vector_E for n in pairs for vector_E in (n.query_E, n.passage_E)])
    return replace(base, demonstrations=demonstrations, vectors_SE=vectors_SE)


def _uses(found: Sequence[Neighbour], *, shown: int, reach: float | None) -> list[Use]:
    similarities_K = np.array([neighbour.similarity for neighbour in found])
    weights_K = np.zeros(len(found)) if reach is None else weights(similarities_K, reach=reach)
    uses = [Use(one, place < shown, float(weights_K[place])) for place, one in enumerate(found)]
    return [use for use in uses if use.shown or use.weight >= LEAST_WEIGHT]


def _moved(vectors_QE: np.ndarray, uses: Sequence[Sequence[Use]], *, boost: float) -> np.ndarray:
    moved_QE = vectors_QE.copy()
    for query, used in enumerate(uses):
        if boost and used:
            passages_KE = as_stored(np.stack([use.neighbour.passage_E for use in used]), vectors_QE.shape[1])
            weights_K = np.array([use.weight for use in used])
            moved_QE[query] = moved(vectors_QE[query], weights_K, passages_KE, boost=boost)
    return moved_QE
