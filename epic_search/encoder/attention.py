"""Attention over texts laid end to end, without padding: one function for the decoder and for the BERT-style encoder.

Registered with transformers as "packed". The mask function returns None, so nothing builds a total x total mask;
`lengths` (tokens of each packed text, in order) reaches `packed_attention` as an extra keyword of the model call.
Neighbouring texts of equal length share one call. Plain padded attention (sdpa, eager) stays the reference.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.products import attention_by_products

PACKED = "packed"


def register() -> None:
    """Make `attn_implementation="packed"` known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)


def packed_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: Sequence[int],
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention inside each text of one packed row (H query heads, G key/value heads, T tokens, D head width).

    Returns (1, T, H, D), as transformers expects.
    """
    assert attention_mask is None and sum(lengths) == query_1HTD.shape[2], (sum(lengths), query_1HTD.shape)
    assert not getattr(module, "sliding_window", None), "choose_layout keeps sliding-window models padded"
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    H, D = query_1HTD.shape[1], query_1HTD.shape[3]
    if query_1HTD.requires_grad and query_1HTD.device.type == "cpu":
        scale = D**-0.5 if scaling is None else scaling
        products = attention_by_products(query_1HTD, key_1GTD, value_1GTD, lengths=lengths, scale=scale, causal=causal)
        return products, None
    parts: list[Tensor] = []
    for start, length, count in _runs(lengths):
        end = start + length * count
        q, k, v = (
            x[0, :, start:end].unflatten(1, (count, length)).transpose(0, 1) for x in (query_1HTD, key_1GTD, value_1GTD)
        )
        part = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=k.shape[1] != H)
        parts.append(part.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).unsqueeze(0), None


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first token, length, how many) of each run of neighbouring texts of equal length."""
    start = 0
    for length, group in groupby(lengths):
        count = sum(1 for _ in group)
        yield start, length, count
        start += length * count
