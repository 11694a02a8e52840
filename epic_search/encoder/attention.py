"""Attention over texts laid end to end, without padding, and over a prefix that all of them share.

One facade, `attend`, for the decoder and for the BERT-style encoder. On a GPU it is torch's `varlen_attn`. On a CPU
where tiles multiply, texts without a prefix go through `attention.cpp` instead (`Compiled` in `passes.py`); elsewhere
neighbouring texts of equal length share one call of `scaled_dot_product_attention`, or with gradients, those of similar
length two matrix products (`products.py`).

A prefix is there once, whatever the number of texts. A long one is attended to by all tokens in one dense call, whose
result is merged with that inside the texts by their log-sum-exps (cascade attention; the merge is that of
FlashAttention, arXiv 2205.14135); a short one is cheaper to put in front of each text's keys.

Registered with transformers as "packed". The mask function returns None, so nothing builds a total x total mask;
`packing` reaches `packed_attention` as an extra keyword of the model call. Plain padded attention (sdpa, eager) stays
the reference.

Shapes: B texts, T their tokens in one row, Q the tokens that ask, P tokens of the prefix, R asking tokens of a text,
L tokens of one text, H query heads, G key/value heads, D head width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.products import attention_by_products

PACKED = "packed"

CASCADE_FROM = 128
"""Tokens of a prefix from which one dense call over it is faster than putting it in front of each text. Measured on two
cores with AMX, bfloat16, 9 heads over 3: at 80 tokens it costs as much for many texts, and more for one."""

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, (P, G, D) each, rotated where a model rotates them."""


@dataclass(frozen=True, eq=False)
class Packing:
    """The texts in one packed row, in order, by their numbers of tokens. `device`: where the row is."""

    lengths: list[int]
    device: torch.device

    @cached_property
    def boundaries(self) -> Tensor:
        """(B + 1,) int32: where each text begins, and the end of the last."""
        sizes = torch.tensor([0, *self.lengths], dtype=torch.int32)
        return sizes.cumsum(0, dtype=torch.int32).to(self.device)

    @cached_property
    def starts(self) -> Tensor:
        """`boundaries` in int64."""
        return self.boundaries.long()

    @cached_property
    def seen_T(self) -> Tensor:
        """(T,) int64: how many tokens of its text each token sees: those before it, and itself."""
        starts_T = self.starts[:-1].repeat_interleave(self.starts.diff())
        return torch.arange(1, len(starts_T) + 1, device=self.device) - starts_T

    @cached_property
    def lengths_T(self) -> Tensor:
        """(T,) int64: how many tokens the text of each token has."""
        lengths_B = self.starts.diff()
        return lengths_B.repeat_interleave(lengths_B)

    def asking(self, reads_BR: Tensor | None, *, causal: bool = True) -> tuple[Tensor, Tensor]:
        """Where the tokens that ask begin for each text, and the last end, (B + 1,), and how many tokens each sees.

        Those that ask are the positions `reads_BR` of each text, or all; if not `causal` all see all. Both int64.
        """
        if reads_BR is None:
            return self.starts, self.seen_T if causal else self.lengths_T
        return torch.arange(len(self.lengths) + 1, device=self.device) * reads_BR.shape[1], reads_BR.flatten() + 1

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """(first text, first token, length, how many) of each run of neighbouring texts of equal length."""
        text = start = 0
        for length, group in groupby(self.lengths):
            count = sum(1 for _ in group)
            yield text, start, length, count
            text, start = text + count, start + length * count


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
    packing: Packing,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """`attend`, as transformers calls it. Returns (1, T, H, D)."""
    assert attention_mask is None, "a packed row has no mask"
    assert not getattr(module, "sliding_window", None), "choose_layout keeps sliding-window models padded"
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    query_THD, key_TGD, value_TGD = (x[0].transpose(0, 1) for x in (query_1HTD, key_1GTD, value_1GTD))
    return attend(query_THD, key_TGD, value_TGD, packing, scale=scaling, causal=causal).unsqueeze(0), None


def attend(
    query_QHD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    causal: bool = True,
    prefix: KeyValue | None = None,
    reads_BR: Tensor | None = None,
) -> Tensor:
    """(Q, H, D): attention of tokens inside their own text and, where there is one, to all of the prefix.

    `reads_BR`: which tokens of each text ask, by their offsets in it, in the order of `query_QHD` (Q = B * R); None:
    all do (Q = T). With a prefix or with `reads_BR`, attention is causal.
    """
    assert sum(packing.lengths) == len(key_TGD), (sum(packing.lengths), key_TGD.shape)
    arguments = (query_QHD, key_TGD, value_TGD, packing)
    if query_QHD.is_cuda:
        return _varlen(_require_varlen(), *arguments, scale=scale, causal=causal, prefix=prefix, reads_BR=reads_BR)
    if prefix is None and reads_BR is None:
        if any(x.requires_grad for x in (query_QHD, key_TGD, value_TGD)):
            return _by_products(*arguments, scale=scale, causal=causal)
        return _inside_texts(*arguments, scale=scale, causal=causal)
    assert causal, "tokens that are read, and those after a prefix, see what is before them"
    if prefix is not None and len(prefix[0]) >= CASCADE_FROM and (flash := cpu_flash()):
        own = _masked(flash, *arguments, scale=scale, reads_BR=reads_BR, prefix=None)
        return _merge(own, _to_prefix(flash, query_QHD, prefix, scale))
    return _masked(_sdpa, *arguments, scale=scale, reads_BR=reads_BR, prefix=prefix)[0]


def _inside_texts(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float | None, causal: bool) -> Tensor:
    parts: list[Tensor] = []
    for _, start, length, count in packing.runs():
        own = slice(start, start + length * count)
        q_BHLD, k_BGLD, v_BGLD = (x[own].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        part_BHLD = F.scaled_dot_product_attention(
            q_BHLD, k_BGLD, v_BGLD, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(part_BHLD.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _by_products(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float | None, causal: bool) -> Tensor:
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return attention_by_products(*heads_first, lengths=packing.lengths, scale=scale, causal=causal)[0]


Dense = Callable[..., tuple[Tensor, Tensor | None]]
"""Attention of (B, G, K, D) with an additive mask, to (B, G, K, D) and log-sum-exps (B, G, K), if it makes them."""


def _masked(
    dense: Dense,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    scale: float | None,
    reads_BR: Tensor | None,
    prefix: KeyValue | None,
) -> tuple[Tensor, Tensor]:
    """(Q, H, D) and, from a function that makes them, log-sum-exps (Q, H).

    The query heads of one key/value head stand in a row of queries, so that no key is repeated.
    """
    H, G = q.shape[1], k.shape[1]
    parts: list[Tensor] = []
    sums: list[Tensor] = []
    for text, start, length, count in packing.runs():
        own = slice(start, start + length * count)
        k_BGLD, v_BGLD = (x[own].unflatten(0, (count, length)).transpose(1, 2) for x in (k, v))
        if reads_BR is None:
            asking, offsets_BR = own, torch.arange(length)[None]
        else:
            R = reads_BR.shape[1]
            asking, offsets_BR = slice(text * R, (text + count) * R), reads_BR[text : text + count]
        q_BGKD = q[asking].unflatten(0, (count, -1)).transpose(1, 2).unflatten(1, (G, -1)).flatten(2, 3)
        hidden_BRL = torch.arange(length) > offsets_BR[..., None]
        if prefix is not None:
            k_BGLD, v_BGLD = (
                torch.cat([shared.transpose(0, 1).expand(count, -1, -1, -1), own_BGLD], dim=2)
                for shared, own_BGLD in zip(prefix, (k_BGLD, v_BGLD), strict=True)
            )
            hidden_BRL = F.pad(hidden_BRL, (len(prefix[0]), 0))
        mask_BRL = torch.zeros(hidden_BRL.shape, dtype=q.dtype).masked_fill_(hidden_BRL, -torch.inf)
        mask_B1KL = mask_BRL.repeat(1, H // G, 1)[:, None]
        part_BGKD, sums_BGK = dense(q_BGKD, k_BGLD, v_BGLD, attn_mask=mask_B1KL, scale=scale)
        parts.append(part_BGKD.reshape(count, H, -1, q.shape[2]).transpose(1, 2).flatten(0, 1))
        if sums_BGK is not None:
            sums.append(sums_BGK.reshape(count, H, -1).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts), torch.cat(sums) if sums else q.new_empty(0)


def _to_prefix(flash: Dense, q: Tensor, prefix: KeyValue, scale: float | None) -> tuple[Tensor, Tensor]:
    """Every token to the whole prefix: (Q, H, D) and log-sum-exps (Q, H)."""
    G = prefix[0].shape[1]
    q_1GKD = q.unflatten(1, (G, -1)).transpose(0, 1).flatten(1, 2)[None]
    k_1GPD, v_1GPD = (x.transpose(0, 1)[None] for x in prefix)
    part_1GKD, sums_1GK = flash(q_1GKD, k_1GPD, v_1GPD, scale=scale)
    assert sums_1GK is not None
    return (
        part_1GKD[0].unflatten(1, (len(q), -1)).transpose(0, 1).flatten(1, 2),
        sums_1GK[0].unflatten(1, (len(q), -1)).transpose(0, 1).flatten(1, 2),
    )


def _merge(own: tuple[Tensor, Tensor], shared: tuple[Tensor, Tensor]) -> Tensor:
    """Attention to two sets of keys from that to each: weighted by the sums of their exponentials."""
    (own_QHD, own_QH), (shared_QHD, shared_QH) = own, shared
    weight_QH = torch.sigmoid(own_QH - shared_QH).to(own_QHD.dtype)
    return torch.lerp(shared_QHD, own_QHD, weight_QH.unsqueeze(-1))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, **options), None


def cpu_flash() -> Dense | None:
    """Attention on the CPU that returns log-sum-exps; None where this torch has none.

    There is no public function for it. Without it, a prefix is put in front of each text, however long it is.
    """
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def varlen_attention() -> Callable[..., Any] | None:
    """torch's `varlen_attn`, where it can do what is asked of it here (from torch 2.12); else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"enable_gqa", "seqused_k"} <= signature(varlen_attn).parameters.keys() else None


def _require_varlen() -> Callable[..., Any]:
    attention = varlen_attention()
    assert attention is not None, "choose_layout keeps batches padded without varlen_attn"
    return attention


def _varlen(
    attention: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    scale: float | None,
    causal: bool,
    prefix: KeyValue | None,
    reads_BR: Tensor | None,
) -> Tensor:
    """`attend` by `varlen_attn`, or by a function with its signature."""
    from torch.nn.attention.varlen import AuxRequest

    options = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1], "return_aux": AuxRequest(lse=True)}

    def ask(q: Tensor, k: Tensor, v: Tensor, *bounds_and_longest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        part_QHD, sums = attention(q.contiguous(), k, v, *bounds_and_longest, **options, **more)
        # The kernels make (H, Q); the documentation says (Q, H).
        return part_QHD, sums.T if sums.shape == (q.shape[1], len(q)) else sums

    bounds, longest = packing.boundaries, max(packing.lengths)
    if reads_BR is None:
        own = ask(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0) if causal else (-1, -1))
    else:
        one_each = torch.arange(len(reads_BR) + 1, dtype=torch.int32, device=q.device)
        seen_RB = (reads_BR.T + 1).to(torch.int32)
        columns_RBHD = q.unflatten(0, reads_BR.shape).unbind(1)
        found = [
            ask(column_BHD, k, v, one_each, bounds, 1, longest, seqused_k=seen_B)
            for column_BHD, seen_B in zip(columns_RBHD, seen_RB, strict=True)
        ]
        own_QHD, own_QH = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*found, strict=True))
        own = own_QHD, own_QH
    if prefix is None:
        return own[0]
    sizes = len(q), len(prefix[0])
    whole = [torch.tensor([0, size], dtype=torch.int32, device=q.device) for size in sizes]
    return _merge(own, ask(q, *prefix, *whole, *sizes))
