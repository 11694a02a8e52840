"""Rows of token ids into tensors: sorted by length, cut by a token budget, packed or padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epic_search.encoder.attention import PACKED, Packing


def token_budget(device: torch.device) -> int:
    """Tokens in a batch for inference: what keeps a CPU's activations in its cache, and a GPU busy."""
    return 4096 if device.type == "cpu" else 32768


def batches(lengths: Sequence[int], *, token_budget: int) -> Iterator[np.ndarray]:
    """Indices of rows, longest first, in batches whose padded size stays within the budget.

    The longest rows come first so that running out of memory shows at once. A row longer than the budget is a batch
    of its own.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        count = max(1, token_budget // longest)
        yield order[start : start + count]
        start += count


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. Packed: ids (1, T) with the texts end to end. Padded: ids (B, L), padding on the right.

    `starts_B`: flat position of each row's first token in ids; `lengths`: tokens of each row; `mask_BL`: padded only.
    """

    ids: Tensor
    positions: Tensor
    starts_B: Tensor
    lengths: list[int]
    mask_BL: Tensor | None

    @property
    def arguments(self) -> dict[str, Any]:
        """What a model needs besides the ids: positions, and the mask or, for packed attention, the packing."""
        packed = {"packing": self.packing} if self.mask_BL is None else {}
        return {"position_ids": self.positions, "attention_mask": self.mask_BL, **packed}

    @property
    def packing(self) -> Packing:
        """The lengths, for attention inside each text."""
        return Packing(self.lengths, self.ids.device)


def lay_out(rows: Sequence[Sequence[int]], layout: str, *, device: torch.device) -> Batch:
    """Rows in the layout "packed" or "padded"."""
    return (pack if layout == PACKED else pad)(rows, device=device)


def pack(rows: Sequence[Sequence[int]], *, device: torch.device, first: int = 0) -> Batch:
    """Rows end to end in one line; each counts its positions from `first`."""
    lengths = [len(row) for row in rows]
    ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    positions = np.concatenate([np.arange(first, first + length) for length in lengths])
    starts = np.cumsum([0, *lengths[:-1]])
    return Batch(_tensor(ids[None], device), _tensor(positions[None], device), _tensor(starts, device), lengths, None)


def pad(rows: Sequence[Sequence[int]], *, device: torch.device) -> Batch:
    """Rows as a matrix, padded on the right with id 0 under a zero mask."""
    lengths = [len(row) for row in rows]
    width = max(lengths)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = np.arange(width) < np.asarray(lengths)[:, None]
    positions = np.broadcast_to(np.arange(width), ids.shape).copy()
    starts = np.arange(len(rows)) * width
    return Batch(
        _tensor(ids, device),
        _tensor(positions, device),
        _tensor(starts, device),
        lengths,
        _tensor(mask.astype(np.int64), device),
    )


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
