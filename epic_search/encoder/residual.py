"""A way around the decoder: the embedding is what the Contextual encoder says, plus what the decoder adds to it.

Causal2Vec (arXiv 2507.23386) sends the Contextual vector through the decoder alone. Few layers and few steps of
training then lose more of it than the decoder's own states bring in. Here it reaches the output undisturbed as well,
and the pooled states come in through a map that starts at zero (as in ControlNet, arXiv 2302.05543): an untrained
encoder's vectors are its Contextual encoder's, and training is only about what to add. This is our addition; neither
paper has it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_SPREAD = 0.05  # of a state, in means over all states: what hardly varies must not be blown up


class Residual(nn.Module):
    """Pooled states (B, S) and Contextual vectors (B, C) -> (B, C) sums, not of unit length.

    A decoder's states are nearly the same for every text: at unit length, most of each is their mean, on which nothing
    can be told apart, and what varies is too small for the map to learn from. So they come in standardised, by the
    means and spreads that `calibrate` took before training (as in arXiv 1807.03039).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, *, states_width: int, context_width: int) -> None:
        super().__init__()
        self.context = nn.Linear(context_width, context_width, bias=False)
        self.states = nn.Linear(states_width, context_width)
        self.register_buffer("mean", torch.zeros(states_width))
        self.register_buffer("scale", torch.ones(states_width))
        if not self.states.weight.is_meta:
            nn.init.eye_(self.context.weight)
            nn.init.zeros_(self.states.weight)
            nn.init.zeros_(self.states.bias)

    @torch.no_grad()
    def calibrate(self, states_NS: Tensor) -> None:
        """Standardise from now on by these states of N texts: to mean 0 each, and on average length 1 in all."""
        unit_NS = F.normalize(states_NS.float(), dim=-1)
        spread_S = unit_NS.std(dim=0)
        spread_S = spread_S.clamp(min=LEAST_SPREAD * spread_S.mean())
        self.mean.copy_(unit_NS.mean(dim=0))
        self.scale.copy_(1 / (spread_S * math.sqrt(len(spread_S))))

    def standardised(self, states_BS: Tensor) -> Tensor:
        """(B, S) states as the map takes them."""
        # Unit length first: states of hundreds would turn one step of the optimiser into a leap.
        return (F.normalize(states_BS.float(), dim=-1) - self.mean) * self.scale

    def forward(self, states_BS: Tensor, context_BC: Tensor) -> Tensor:
        return self.context(context_BC.float()) + self.states(self.standardised(states_BS))
