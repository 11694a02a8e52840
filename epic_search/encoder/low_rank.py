"""Frozen linear layers with LoRA layers beside them (arXiv 2106.09685), as products with packed weights, both ways.

x W^T + s (x A^T) B^T is one product: of [x, x A^T] with [W, s B]. So is the gradient of x: [dy, s dy B] by [W; A]. The
frozen parts are packed once, and of them only a few columns are written again in each step. Rows of states and of
gradients therefore come with room for the low-rank product at their end, filled with zeros.

Shapes: T tokens, K inputs, N outputs of all layers, R their ranks together, rounded up to what tiles hold (the room).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.learning_passes import LearningPasses
from epic_search.encoder.tiles import WIDTH, Weight


@dataclass(frozen=True)
class Update:
    """What one layer learns, and which outputs and ranks are its own."""

    a_RK: Tensor
    b_NR: Tensor
    scale: float
    outputs: slice
    ranks: slice


def base_of(layer: nn.Module) -> nn.Linear | None:
    """The frozen layer that a layer is, or has LoRA without dropout beside; None where it is another thing."""
    if isinstance(layer, nn.Linear):
        return layer
    from epic_search.encoder.lora_layers import LowRankLinear  # peft, which takes seconds to import, has made it

    base = layer.get_base_layer() if isinstance(layer, LowRankLinear) else None
    return base if isinstance(base, nn.Linear) else None


class LowRankProduct:
    """Layers that read the same states, as one. `parameters`: of their updates, A and B of each in turn."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.updates: list[Update] = []
        bases: list[nn.Linear] = []
        rank = first = 0
        for layer in layers:
            base = base_of(layer)
            assert base is not None, type(layer)
            bases.append(base)
            if layer is not base:
                (name,) = layer.active_adapters
                a_RK, b_NR = layer.lora_A[name].weight, layer.lora_B[name].weight
                outputs, ranks = slice(first, first + base.out_features), slice(rank, rank + len(a_RK))
                self.updates.append(Update(a_RK, b_NR, layer.scaling[name], outputs, ranks))
                rank = ranks.stop
            first += base.out_features
        self.room = -(-rank // WIDTH) * WIDTH
        weight_NK = torch.cat([base.weight.detach() for base in bases])
        biases: list[Tensor] = [base.bias for base in bases if base.bias is not None]
        self._forward = Weight(F.pad(weight_NK, (0, self.room)), torch.cat(biases) if biases else None).keep_packed()
        self._backward = Weight(F.pad(weight_NK.T, (0, self.room))).keep_packed()
        self._down = self._back_down = self._forward
        self._N, self._K = weight_NK.shape
        self._taken = [torch.empty(0) for _ in self.parameters]

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for update in self.updates for parameter in (update.a_RK, update.b_NR)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the updates as they are now."""
        if not self.room or all(map(torch.equal, self._taken, self.parameters)):
            return
        self._taken = [parameter.clone() for parameter in self.parameters]
        whole = self._K + self.room
        a_RK, b_NR = torch.zeros(self.room, whole, dtype=torch.bfloat16), torch.zeros(self._N, self.room)
        for update in self.updates:
            a_RK[update.ranks, : self._K] = update.a_RK
            torch.mul(update.b_NR, update.scale, out=b_NR[update.outputs, update.ranks])
        b_NR = b_NR.bfloat16()
        self._down, self._back_down = Weight(a_RK), Weight(F.pad(b_NR.T, (0, self.room)))
        self._down.keep_packed(), self._back_down.keep_packed()
        self._forward.packed[:, self._K // WIDTH :] = Weight(b_NR).packed
        self._backward.packed[:, self._N // WIDTH :] = Weight(a_RK[:, : self._K].T).packed

    def forward(self, states: Tensor, passes: LearningPasses) -> tuple[Tensor, Tensor | None]:
        """(T, N) outputs and (T, R) of the low-rank products, which are written at the end of (T, K + R) states."""
        low_TR = self._low(states, self._down, passes)
        return passes.linear(states, self._forward), low_TR

    def backward(self, gradient: Tensor, passes: LearningPasses) -> Tensor:
        """The gradient (T, K) of the states, from that of the outputs, (T, N + R), as `backward_low` leaves it."""
        self.backward_low(gradient, passes)
        return passes.linear(gradient, self._backward)

    def backward_low(self, gradient: Tensor, passes: LearningPasses) -> None:
        """Write the gradient of the low-rank products at the end of the outputs', (T, N + R)."""
        self._low(gradient, self._back_down, passes)

    def gradients(
        self, gradient: Tensor, states_TK: Tensor, low_TR: Tensor | None, passes: LearningPasses
    ) -> list[Tensor]:
        """Those of `parameters`, from that of the outputs as `backward_low` leaves it."""
        if low_TR is None:
            return []
        of_a_RK = passes.multiply_transposed(gradient[:, self._N :], states_TK)
        of_b_RN = passes.multiply_transposed(low_TR, gradient[:, : self._N])
        found = []
        for update in self.updates:
            of_b_NR = of_b_RN[update.ranks, update.outputs].T * update.scale
            found += [of_a_RK[update.ranks].to(update.a_RK.dtype), of_b_NR.to(update.b_NR.dtype)]
        return found

    def _low(self, rows: Tensor, weight: Weight, passes: LearningPasses) -> Tensor | None:
        if not self.room:
            return None
        low_TR = passes.linear(rows, weight)
        rows[:, -self.room :] = low_TR
        return low_TR
