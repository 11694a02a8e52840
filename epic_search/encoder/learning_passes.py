"""The compiled passes of training (`learning.cpp`), and what they need beside the ones of inference: products on tiles.

Shapes: T tokens, D width, I width inside the MLP, B texts.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epic_search.encoder.passes import Compiled, Rotation


@dataclass(frozen=True)
class Attention:
    """What attention is asked of: heads in rows of queries, and groups of keys and then of values in `joined` rows.

    `first`: the number with which the keys begin; `asking`, `starts` (B + 1,): where each text's rows begin in both,
    and the last ends; `seen`: how many keys each row of queries sees.
    """

    query: Tensor
    joined: Tensor
    first: int
    heads: int
    groups: int
    width: int
    scale: float
    asking: Tensor
    starts: Tensor
    seen: Tensor

    @property
    def wide(self) -> int:
        """Numbers that the keys take."""
        return self.groups * self.width

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As the compiled functions take them."""
        key, value = self.joined[:, self.first :], self.joined[:, self.first + self.wide :]
        rows = self.query, self.query.stride(0), key, value, self.joined.stride(0), self.joined.stride(0)
        texts = self.asking, self.starts, self.seen, ctypes.c_float(self.scale), len(self.starts) - 1
        return (*rows, *texts, self.heads, self.groups, self.width)


class LearningPasses:
    """Passes over bfloat16 tensors on the CPU. `room`: zeros at the end of a row, where low-rank products will be."""

    def __init__(self, compiled: Compiled) -> None:
        assert compiled.has_tiles, "training in compiled passes needs products on tiles"
        self.linear = compiled.linear
        self._rotate = compiled.rotate
        self._library = compiled.library

    def norm(
        self, states_TD: Tensor, weight_D: Tensor, eps: float, *, room: int, added_TD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(T, D + room) RMS norms of the states, to which `added_TD` is first added, in place; and (T,) 1 / RMS."""
        T, D = states_TD.shape
        out, scales_T = states_TD.new_empty(T, D + room), torch.empty(T)
        self._run("norm_with_room", out, scales_T, states_TD, added_TD, weight_D, T, D, room, ctypes.c_float(eps))
        return out, scales_T

    def norm_backward(
        self, gradient_TD: Tensor, of_normed_TD: Tensor, states_TD: Tensor, scales_T: Tensor, weight_D: Tensor
    ) -> Tensor:
        """Add the gradient of the states to `gradient_TD`; returns their norms."""
        normed_TD = torch.empty_like(states_TD)
        tensors = gradient_TD, normed_TD, of_normed_TD, states_TD, scales_T, weight_D
        self._run("norm_backward", *tensors, *states_TD.shape)
        return normed_TD

    def gate(self, gate_up: Tensor, *, room: int) -> Tensor:
        """silu(gate) * up, (T, I + room), from (T, 2 * I)."""
        T, I = len(gate_up), gate_up.shape[1] // 2  # noqa: E741
        out = gate_up.new_empty(T, I + room)
        self._run("gate_with_room", out, gate_up, T, I, room)
        return out

    def gate_backward(self, of_out_TI: Tensor, gate_up: Tensor, *, room: int) -> tuple[Tensor, Tensor]:
        """The gradient (T, 2 * I + room) of gate and up, and what came through the gate (T, I)."""
        T, I = of_out_TI.shape  # noqa: E741
        gradient, out_TI = gate_up.new_empty(T, 2 * I + room), torch.empty_like(of_out_TI)
        self._run("gate_backward", gradient, out_TI, of_out_TI, gate_up, T, I, room)
        return gradient, out_TI

    def rotate(self, states: Tensor, heads: int, rotation: Rotation) -> None:
        """In place, the first so many heads of each row."""
        width = 2 * rotation[0].shape[-1]
        self._rotate(states[:, : heads * width].unflatten(1, (heads, width)), rotation)

    def attend(self, out: Tensor, attention: Attention) -> None:
        """Write what the tokens that ask have found, all heads of them, at the beginning of the rows of `out`."""
        self._run("attend_texts", out, out.stride(0), *attention.arguments)

    def attend_backward(self, of_query: Tensor, of_joined: Tensor, of_out: Tensor, attention: Attention) -> None:
        """Write the gradients of queries, keys and values where these stand in their rows; from that of the result."""
        of_parts = (of_joined[:, attention.first :], of_joined[:, attention.first + attention.wide :])
        strides = of_joined.stride(0), of_out, of_out.stride(0)
        arguments = (of_query, of_query.stride(0), *of_parts, *strides, *attention.arguments)
        self._run("attend_texts_backward", *arguments)

    def multiply_transposed(self, low_TR: Tensor, states_TN: Tensor) -> Tensor:
        """(R, N) float32: `low_TR` transposed, times states."""
        (T, R), N = low_TR.shape, states_TN.shape[1]
        out_RN, strides = torch.empty(R, N), (low_TR.stride(0), states_TN.stride(0))
        self._run("multiply_transposed", out_RN, low_TR, states_TN, T, R, N, *strides)
        return out_RN

    def _run(self, name: str, *arguments: Any) -> None:
        """Call a function with pointers to tensors, whose rows are contiguous, and with the number of threads."""
        given = [
            ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_int64(x) if isinstance(x, int) else x
            for x in arguments
        ]
        self._library[name](*given, ctypes.c_int(torch.get_num_threads()))
