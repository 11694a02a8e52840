"""The weights of linear layers that stay as they are, for torch's products and for ours on AMX tiles (`tiles.cpp`).

Ours read a weight in another order than torch's. It is put into it once so many rows have been multiplied with it that
this has paid, so not for a few queries, and stays beside torch's own, which the plain path and whoever saves the model
still read: as much memory again as the weights of the layers take, or in int8 half of it.

In int8 the rows of a weight, and each row of states on its way into a product, are divided by a scale of their own, so
that the largest of their numbers is 127, and rounded; sums are whole numbers until both scales are multiplied back. A
vector then depends on it, so all rows go this way, however few.

Shapes: T tokens, K inputs, N outputs.
"""

from functools import cached_property

import torch
from torch import Tensor

WIDTH = 32  # numbers of a tile's row: inputs (twice as many in int8) and outputs come in multiples of it
LEAST = 1e-30  # what an output whose weights are all zero is divided by
WORTH = 512  # rows for which a weight is packed


class Weight:
    """A linear layer's weight (N, K) and bias; of a `gated` one the first half of the outputs are gates of the others.

    Both are shared, not copied. Products are `int8` where tiles hold them.
    """

    def __init__(
        self, plain_NK: Tensor, bias_N: Tensor | None = None, *, gated: bool = False, int8: bool = False
    ) -> None:
        self.plain_NK, self.bias_N, self.is_gated = plain_NK.detach(), bias_N, gated
        self.is_int8 = int8 and plain_NK.shape[1] % (2 * WIDTH) == 0
        self._rows = 0

    def fits(self, states_TK: Tensor) -> bool:
        """Whether tiles hold these states and this weight, and it is packed or to be packed now, for so many rows."""
        N, K = self.plain_NK.shape
        if not states_TK.dtype == self.plain_NK.dtype == torch.bfloat16 or N % WIDTH or K % WIDTH:
            return False
        self._rows += len(states_TK)
        return self.is_int8 or self._rows >= WORTH

    def keep_packed(self) -> "Weight":
        """Packed from now on, for however few rows, and no longer there for torch's products."""
        assert self.packed.dtype == torch.bfloat16, self.packed.dtype
        _ = self.packed_bias_N  # made now as well
        self._rows, self.plain_NK = WORTH, self.plain_NK.to("meta")
        return self

    @cached_property
    def packed(self) -> Tensor:
        """(N / 32, K / 32, 2, 16, 16, 2): for 32 outputs and 32 inputs two tiles, their rows pairs of inputs.

        In int8 (N / 32, K / 64, 2, 16, 16, 4), their rows fours of inputs.
        """
        (N, K), together, weight_NK = self.plain_NK.shape, 2, self._ordered(self.plain_NK)
        if self.scales_N is not None:
            together, weight_NK = 4, (weight_NK * (1 / self.scales_N[:, None])).round_().to(torch.int8)
        tiles = weight_NK.view(N // WIDTH, 2, 16, K // (16 * together), 16, together)
        return tiles.permute(0, 3, 1, 4, 2, 5).contiguous()

    @cached_property
    def scales_N(self) -> Tensor | None:
        """What the packed outputs of int8 are to be multiplied with, in their order, float32."""
        if not self.is_int8:
            return None
        scales_N = self._ordered(self.plain_NK.abs().amax(dim=1)).float() / 127
        return scales_N.clamp_(min=LEAST)

    @cached_property
    def packed_bias_N(self) -> Tensor | None:
        return None if self.bias_N is None else self._ordered(self.bias_N).contiguous()

    def _ordered(self, outputs: Tensor) -> Tensor:
        """Each 16 gates before the 16 that they are for."""
        if not self.is_gated:
            return outputs
        return outputs.unflatten(0, (2, -1, 16)).transpose(0, 1).flatten(0, 2)
