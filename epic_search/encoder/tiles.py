"""The weights of linear layers that stay as they are, for torch's products and for ours on AMX tiles (`tiles.cpp`).

Ours read a weight in another order than torch's. It is put into it once so many rows have been multiplied with it that
this has paid, so not for a few queries, and stays beside torch's own, which the plain path and whoever saves the model
still read: as much memory again as the weights of the layers take.

Shapes: T tokens, K inputs, N outputs.
"""

from functools import cached_property

import torch
from torch import Tensor

WIDTH = 32  # numbers of a tile's row: inputs and outputs come in multiples of it
WORTH = 512  # rows for which a weight is packed


class Weight:
    """A linear layer's weight (N, K) and bias; of a `gated` one the first half of the outputs are gates of the others.

    Both are shared, not copied.
    """

    def __init__(self, plain_NK: Tensor, bias_N: Tensor | None = None, *, gated: bool = False) -> None:
        self.plain_NK, self.bias_N, self.is_gated = plain_NK.detach(), bias_N, gated
        self._rows = 0

    def fits(self, states_TK: Tensor) -> bool:
        """Whether tiles hold these states and this weight, and it is packed or to be packed now, for so many rows."""
        N, K = self.plain_NK.shape
        if not states_TK.dtype == self.plain_NK.dtype == torch.bfloat16 or N % WIDTH or K % WIDTH:
            return False
        self._rows += len(states_TK)
        return self._rows >= WORTH

    def keep_packed(self) -> "Weight":
        """Packed from now on, for however few rows, and no longer there for torch's products."""
        assert self.packed.dtype == torch.bfloat16, self.packed.dtype
        _ = self.packed_bias_N  # made now as well
        self._rows, self.plain_NK = WORTH, self.plain_NK.to("meta")
        return self

    @cached_property
    def packed(self) -> Tensor:
        """(N / 32, K / 32, 2, 16, 16, 2): for 32 outputs and 32 inputs two tiles, their rows pairs of inputs."""
        N, K = self.plain_NK.shape
        tiles = self._ordered(self.plain_NK).view(N // WIDTH, 2, 16, K // WIDTH, 16, 2)
        return tiles.permute(0, 3, 1, 4, 2, 5).contiguous()

    @cached_property
    def packed_bias_N(self) -> Tensor | None:
        return None if self.bias_N is None else self._ordered(self.bias_N).contiguous()

    def _ordered(self, outputs: Tensor) -> Tensor:
        """Each 16 gates before the 16 that they are for."""
        if not self.is_gated:
            return outputs
        return outputs.unflatten(0, (2, -1, 16)).transpose(0, 1).flatten(0, 2)
