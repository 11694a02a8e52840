"""The compiled passes of training (`learning.cpp`), and what they need beside the ones of inference: products on tiles.

Shapes: T tokens, D width, I width inside the MLP; in a bucket of texts B texts of up to L tokens, H heads of width W,
Q queries and L keys of each text.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from epic_search.encoder.passes import Compiled, Rotation


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

    def split_heads(
        self, states: Tensor, starts: Tensor, *, first: int, heads: int, width: int, longest: int
    ) -> Tensor:
        """(B, H, L, W): the heads from number `first` on of the texts' rows, and zeros after the end of a text.

        `starts` (B + 1,): the first row of each text and the end of the last.
        """
        B = len(starts) - 1
        out_BHLW = states.new_empty(B, heads, longest, width)
        self._run("split_heads", out_BHLW, states[:, first * width :], starts, states.stride(0), *out_BHLW.shape)
        return out_BHLW

    def join_heads(self, states: Tensor, heads_BHLW: Tensor, starts: Tensor, *, first: int) -> None:
        """The way back: write heads into the texts' rows."""
        where = states[:, first * heads_BHLW.shape[-1] :]
        self._run("join_heads", where, heads_BHLW, starts, states.stride(0), *heads_BHLW.shape)

    def softmax(self, scores_BHQL: Tensor, seen_BQ: Tensor, scale: float) -> None:
        """In place: of scale * scores over the first keys, as many as each query sees."""
        self._run("softmax", scores_BHQL, seen_BQ, ctypes.c_float(scale), *scores_BHQL.shape)

    def softmax_backward(self, gradient_BHQL: Tensor, shares_BHQL: Tensor, scale: float) -> None:
        """In place: the gradient of scores from that of `shares_BHQL`."""
        L = shares_BHQL.shape[-1]
        self._run("softmax_backward", gradient_BHQL, shares_BHQL, ctypes.c_float(scale), shares_BHQL.numel() // L, L)

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
