"""Attention over packed texts as plain matrix products, for training on a CPU.

There the backward pass of torch's fused attention takes longer than all other products of a layer, and a call for each
text costs a gradient as long as the whole batch. Here neighbouring texts of similar length share two batched products,
padded to the longest of them: texts come sorted by length, so that little is padding, and only inside of attention.

Shapes: H query heads, G key/value heads, T packed tokens, D head width; in a bucket B texts of up to L tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SIMILAR = 0.7  # the shortest text of a bucket has at least this share of the tokens of its longest


def attention_by_products(
    query_1HTD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor, *, lengths: Sequence[int], scale: float, causal: bool
) -> Tensor:
    """(1, T, H, D): each token attends within its own text, to itself and what comes before, or to all if not causal.

    `lengths`: tokens of each packed text, in order. As `torch.nn.functional.scaled_dot_product_attention` text by text.
    """
    H, G, D = query_1HTD.shape[1], key_1GTD.shape[1], query_1HTD.shape[3]
    found = buckets(tuple(lengths))
    # One split, not a slice each: the gradient of a split is a single concatenation.
    sizes = [bucket.tokens for bucket in found]
    parts = []
    for bucket, *heads in zip(
        found, *(x[0].split(sizes, dim=1) for x in (query_1HTD, key_1GTD, value_1GTD)), strict=True
    ):
        B, L = bucket.positions_BL.shape
        positions = bucket.positions_BL.flatten().to(query_1HTD.device)
        q, k, v = (x if bucket.is_even else x.index_select(1, positions) for x in heads)
        # The H/G query heads that share a key head are rows of the same product.
        q = q.reshape(G, H // G, B, L, D).permute(2, 0, 1, 3, 4).reshape(B * G, H // G * L, D)
        k, v = (x.reshape(G, B, L, D).transpose(0, 1).reshape(B * G, L, D) for x in (k, v))
        bias = bucket.bias(causal, groups=G, repeats=H // G).to(q)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
        shares = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        out = torch.bmm(shares, v).reshape(B, G, H // G, L, D).permute(0, 3, 1, 2, 4).reshape(B * L, H, D)
        parts.append(out if bucket.is_even else out.index_select(0, bucket.tokens_T.to(out.device)))
    return torch.cat(parts).unsqueeze(0)


@dataclass(frozen=True, eq=False)
class Bucket:
    """Neighbouring texts that are padded together.

    `positions_BL`: where each token stands in the bucket's packed row (padding: 0); `tokens_T`: where each packed token
    stands in the flattened matrix.
    """

    lengths_B: Tensor
    positions_BL: Tensor
    tokens_T: Tensor

    @property
    def tokens(self) -> int:
        return len(self.tokens_T)

    @property
    def is_even(self) -> bool:
        """Whether all texts are of one length."""
        return self.tokens == self.positions_BL.numel()

    def bias(self, causal: bool, *, groups: int, repeats: int) -> Tensor:
        """0 where a token may look, minus infinity elsewhere, for scores (B * groups, repeats * L, L) to add."""
        L = self.positions_BL.shape[1]
        if causal:  # padding comes last, and nothing that counts looks ahead
            hidden = torch.ones(1, L, L, dtype=torch.bool).triu(1).repeat(1, repeats, 1)
        else:
            padding_BL = torch.arange(L) >= self.lengths_B[:, None]
            hidden = padding_BL[:, None, :].repeat_interleave(groups, dim=0)
        return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


@lru_cache(maxsize=64)  # every layer of a forward pass asks for the same
def buckets(lengths: tuple[int, ...]) -> list[Bucket]:
    """Neighbours of similar length."""
    return [_bucket(group) for group in _similar(lengths)]


def _similar(lengths: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    for length in lengths:
        if group and min(length, *group) < SIMILAR * max(length, *group):
            yield group
            group = []
        group.append(length)
    if group:
        yield group


def _bucket(lengths: list[int]) -> Bucket:
    lengths_B = torch.tensor(lengths)
    is_token_BL = torch.arange(max(lengths)) < lengths_B[:, None]
    positions_BL = torch.zeros(is_token_BL.shape, dtype=torch.long)
    positions_BL[is_token_BL] = torch.arange(sum(lengths))
    return Bucket(lengths_B, positions_BL, is_token_BL.flatten().nonzero().squeeze(1))
