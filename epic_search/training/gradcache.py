"""Large batches in bounded memory: GradCache (arXiv 2101.06983), with gradients through demonstrations.

The loss needs the vectors of the whole batch, but not their activations all at once:

1. Encode everything without gradients, pass 2 with the vectors of pass 1 in its slots (or with the texts of its
   demonstrations, which no gradient goes through).
2. Compute the loss of the vectors alone and its gradient for each vector: the cache.
3. Encode pass 2 again, group by group, and send each group's cached gradients back through it. What arrives at its soft
   slots is the gradient of pass-1 vectors: it is added to theirs (not where the objective stops gradients).
4. Do the same with pass 1.
5. Where the Contextual encoder learns, send what has arrived at its vectors from all groups back through it.

Everything is encoded twice, and never more than one group (`token_budget`) has its activations in memory. Gradients are
those of the plain path; dropout draws the same numbers in both encodings. Of several processes (`parallel.py`), each
encodes its share of the rows, and gradients of vectors are summed over all before they are sent back.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from epic_search.encoder.encoder import Encoder
from epic_search.encoder.prompt import Row
from epic_search.training.losses import Losses, losses_of_vectors
from epic_search.training.objective import embed_group, embed_teacher
from epic_search.training.parallel import ALONE, World
from epic_search.training.passes import Passes, row_groups
from epic_search.training.recipe import Objective

_FIRST, _DEMONSTRATED = range(2)


def cached_gradients(
    encoder: Encoder, passes: Passes, objective: Objective, *, token_budget: int, seed: int, world: World = ALONE
) -> Losses:
    """Add the gradients of a batch's loss to the parameters; the losses returned carry none. `seed` is for dropout.

    Of several processes each adds what comes from its share of the rows: `World.sum_gradients` is left to do.
    """
    # The Contextual vectors serve many groups: what comes back to them is collected here, and goes on at the end.
    way_back_NC = passes.context_NC
    if way_back_NC is not None and way_back_NC.requires_grad:
        passes = replace(passes, context_NC=way_back_NC.detach().requires_grad_())
    cache = _Cache(encoder, passes, token_budget=token_budget, seed=seed, world=world)
    demonstrated_QE = None
    with torch.no_grad():
        first_NE = cache.vectors(_FIRST, None)
        if passes.demonstrated_rows:
            soft = passes.soft(*passes.apart(first_NE), stop_gradient=True)
            demonstrated_QE = cache.vectors(_DEMONSTRATED, soft).requires_grad_()
    teacher_KE = embed_teacher(encoder, passes, token_budget=token_budget, world=world)
    query_QE, passage_PE = passes.apart(first_NE.requires_grad_())
    losses = losses_of_vectors(
        passes, query_QE, passage_PE, demonstrated_QE, teacher_KE, objective, config=encoder.config
    )
    (losses.total / world.size).backward()

    if demonstrated_QE is not None:
        assert demonstrated_QE.grad is not None
        # Unless they are stopped, the gradients of pass-1 vectors grow by what comes back through the slots.
        cache.send_back(
            _DEMONSTRATED,
            demonstrated_QE.grad,
            lambda: passes.soft(*passes.apart(first_NE), stop_gradient=objective.stop_gradient),
        )
    assert first_NE.grad is not None
    cache.send_back(_FIRST, first_NE.grad)
    if way_back_NC is not None and way_back_NC.requires_grad:
        assert passes.context_NC is not None and passes.context_NC.grad is not None
        way_back_NC.backward(passes.context_NC.grad)
    return replace(losses, total=losses.total.detach())


class _Cache:
    """Encodes the rows of a batch group by group, twice alike."""

    def __init__(self, encoder: Encoder, passes: Passes, *, token_budget: int, seed: int, world: World) -> None:
        self._encoder = encoder
        self._passes = passes
        self._seed = seed
        self._world = world
        self._rows = (passes.first_rows, passes.demonstrated_rows)
        self._groups = [row_groups(rows, token_budget=token_budget, world=world) for rows in self._rows]

    def vectors(self, which: int, soft: Sequence[Tensor] | None) -> Tensor:
        """(N, E) vectors of all rows of one sort, in order."""
        groups = self._groups[which]
        own_BE = torch.cat([self._group(which, indices, soft) for indices in groups])
        return self._world.gather(own_BE, np.concatenate(groups), count=len(self._rows[which]))

    def send_back(
        self, which: int, gradient_NE: Tensor, slots: Callable[[], list[Tensor] | None] = lambda: None
    ) -> None:
        """Encode again, with gradients, and send the cached ones of each vector back, summed over all processes.

        `slots` makes what fills the soft slots of all rows, from pass-1 vectors.
        """
        gradient_NE = self._world.sum(gradient_NE)
        for indices in self._groups[which]:
            # Made anew for each group: backward frees the way from the slots to their sources.
            vectors_BE = self._group(which, indices, slots())
            if vectors_BE.requires_grad:  # not where projectors alone are trained, and no row of the group needs them
                vectors_BE.backward(gradient_NE[torch.from_numpy(indices).to(gradient_NE.device)])

    def _group(self, which: int, indices: np.ndarray, soft: Sequence[Tensor] | None) -> Tensor:
        # The first row tells groups apart, in all processes.
        torch.manual_seed(self._seed * 2_000_000 + which * 1_000_000 + int(indices[0]))
        rows: Sequence[Row] = self._rows[which]
        context_NC = self._passes.first_context if which == _FIRST else self._passes.context_query
        return embed_group(self._encoder, rows, context_NC, soft, indices)
