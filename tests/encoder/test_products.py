"""Attention as plain products gives the outputs and gradients of torch's own, text by text."""

import pytest
import torch
from torch.nn import functional as F

from epic_search.encoder.products import attention_by_products, buckets

LENGTHS = [9, 9, 8, 8, 5, 2, 1, 1, 7]


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("causal", [True, False])
def test_outputs_and_gradients_are_those_of_each_text_alone(heads: tuple[int, int], causal: bool) -> None:
    torch.manual_seed(3)
    H, G, D = *heads, 8
    sources = [torch.randn(1, n, sum(LENGTHS), D, requires_grad=True) for n in (H, G, G)]
    weights = torch.randn(1, sum(LENGTHS), H, D)

    alone = []
    for q, k, v in zip(*(x.split(LENGTHS, dim=2) for x in sources), strict=True):
        alone.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True))
    plain = torch.cat(alone, dim=2).transpose(1, 2)
    expected = torch.autograd.grad((plain * weights).sum(), sources)

    found = attention_by_products(*sources, lengths=LENGTHS, scale=0.3, causal=causal)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), sources), expected)


def test_texts_of_similar_length_are_padded_together() -> None:
    found = buckets(tuple(LENGTHS))
    assert [bucket.lengths_B.tolist() for bucket in found] == [[9, 9, 8, 8], [5], [2], [1, 1], [7]]
    assert [bucket.is_even for bucket in found] == [False, True, True, True, True]
    assert sum(bucket.tokens for bucket in found) == sum(LENGTHS)
