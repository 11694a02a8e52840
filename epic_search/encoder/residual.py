"""A way around the decoder: the embedding is what the Contextual encoder says, plus what the decoder adds to it.

Causal2Vec (arXiv 2507.23386) sends the Contextual vector through the decoder alone. Few layers and few steps of
training then lose more of it than the decoder's own states bring in. Here it reaches the output undisturbed as well,
and the pooled states come in through a map that starts at zero (as in ControlNet, arXiv 2302.05543): an untrained
encoder ranks exactly as its Contextual encoder does, and training is only about what to add. This is our addition;
neither paper has it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Pooled states (B, E) and Contextual vectors (B, C) -> (B, E) sums, not of unit length.

    The Contextual vector's way starts as an isometry (a projection, where E < C).
    """

    def __init__(self, *, dim: int, context_width: int) -> None:
        super().__init__()
        self.context = nn.Linear(context_width, dim, bias=False)
        self.states = nn.Linear(dim, dim)
        if not self.states.weight.is_meta:
            nn.init.orthogonal_(self.context.weight)
            nn.init.zeros_(self.states.weight)
            nn.init.zeros_(self.states.bias)

    @torch.no_grad()
    def reorder(self, order_E: Tensor) -> None:
        """Take from now on, as state i, what has been state `order_E[i]`."""
        self.states.weight.copy_(self.states.weight[:, order_E.to(self.states.weight.device)])

    def forward(self, states_BE: Tensor, context_BC: Tensor) -> Tensor:
        # Unit length: states of hundreds would turn one step of the optimiser into a leap.
        return self.context(context_BC.float()) + self.states(F.normalize(states_BE.float(), dim=-1))
