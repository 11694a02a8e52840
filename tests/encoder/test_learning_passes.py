"""The compiled passes of training, both ways, are what torch computes in float64."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.learning_passes import Attention, LearningPasses
from epic_search.encoder.passes import Compiled

ROUNDED = 2**-8  # a bfloat16 is within so much of what it stands for
COMPUTED = 1e-3  # and what is rounded within so much of what it should be


@pytest.fixture
def passes(tiles: Compiled) -> LearningPasses:
    torch.manual_seed(0)
    return LearningPasses(tiles)


def close(found: Tensor, expected: Tensor, *, sums: float = 0.0) -> None:
    """`sums`: what rounding may move a sum by, of terms that are much larger than it."""
    torch.testing.assert_close(found.double(), expected, rtol=ROUNDED + COMPUTED, atol=1e-5 + sums)


def exactly(numbers: Tensor) -> Tensor:
    return numbers.double().requires_grad_()


@pytest.mark.parametrize("rows", [1, 37, 500])
def test_norm(passes: LearningPasses, rows: int) -> None:
    states, added, of_normed, before = (torch.randn(4, rows, 96).bfloat16() * 3).unbind()
    weight = torch.randn(96).bfloat16()
    own = states.clone()
    normed, scales = passes.norm(own, weight, 1e-5, room=32, added_TD=added)
    assert torch.equal(own, states + added)
    assert not normed[:, 96:].any(), "room is filled with zeros"
    total = exactly(own)
    expected = F.rms_norm(total, (96,), weight.double(), 1e-5)
    close(normed[:, :96], expected)
    (of_total,) = torch.autograd.grad(expected, total, of_normed.double())
    gradient = before.clone()
    again = passes.norm_backward(gradient, of_normed, own, scales, weight)
    assert torch.equal(again, normed[:, :96])
    close(gradient, before.double() + of_total, sums=0.02)


@pytest.mark.parametrize("rows", [1, 37])
def test_gate(passes: LearningPasses, rows: int) -> None:
    gate_up, of_out = torch.randn(rows, 192).bfloat16() * 5, torch.randn(rows, 96).bfloat16()
    gate_up[0, :4] = torch.tensor([-1e3, 1e3, -1e30, 1e30])
    both = exactly(gate_up)
    expected = F.silu(both[:, :96]) * both[:, 96:]
    found = passes.gate(gate_up, room=32)
    close(found[:, :96], expected)
    gradient, again = passes.gate_backward(of_out, gate_up, room=64)
    assert torch.equal(again, found[:, :96]) and not found[:, 96:].any() and not gradient[:, 192:].any()
    (expected_gradient,) = torch.autograd.grad(expected, both, of_out.double())
    close(gradient[:, :192], expected_gradient, sums=1e-3)


@pytest.mark.parametrize("reads", [0, 2], ids=["all ask", "two of each text ask"])
@pytest.mark.parametrize(("heads", "groups", "width"), [(6, 2, 32), (3, 3, 64)])
def test_attention_inside_texts(passes: LearningPasses, heads: int, groups: int, width: int, reads: int) -> None:
    """Heads of queries, keys and values in one row, or queries apart; each text by itself, in order."""
    lengths = [70, 33, 32, 7, 1]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    total, wide = sum(lengths), groups * width
    joined = torch.randn(total, (0 if reads else heads * width) + 2 * wide).bfloat16()
    first = joined.shape[1] - 2 * wide
    offsets = [torch.randint(length, (reads,)) if reads else torch.arange(length) for length in lengths]
    query = torch.randn(sum(map(len, offsets)), heads * width).bfloat16() if reads else joined
    asking = torch.tensor([0, *map(len, offsets)]).cumsum(0)
    attention = Attention(query, joined, first, heads, groups, width, 0.3, asking, starts, seen=torch.cat(offsets) + 1)
    out = torch.zeros(len(query), heads * width + 32).bfloat16()
    passes.attend(out, attention)
    assert not out[:, heads * width :].any()

    exact_query, exact = exactly(query[:, : heads * width]), exactly(joined[:, first:])
    parts = []
    for text, (start, stop) in enumerate(pairwise(starts)):
        q = exact_query[asking[text] : asking[text + 1]].unflatten(1, (heads, width)).transpose(0, 1)
        k, v = exact[start:stop].unflatten(1, (2 * groups, width)).transpose(0, 1).split(groups)
        sees = torch.arange(len(k[0])) <= offsets[text][:, None]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=0.3, enable_gqa=True))
    expected = torch.cat([part.transpose(0, 1).flatten(1) for part in parts])
    close(out[:, : heads * width], expected, sums=0.02)

    of_out = torch.randn(len(query), heads * width).bfloat16()
    of_query, of_keys = torch.autograd.grad(expected, (exact_query, exact), of_out.double())
    found = torch.zeros_like(joined)
    found_query = torch.zeros_like(query) if reads else found
    passes.attend_backward(found_query, found, of_out, attention)
    for gradient, exact_gradient in ((found_query[:, : heads * width], of_query), (found[:, first:], of_keys)):
        assert (gradient - exact_gradient).norm() < 0.01 * exact_gradient.norm()
    torch.testing.assert_close(found[:, first:].double(), of_keys, rtol=0.02, atol=0.1)


@pytest.mark.parametrize(("rows", "ranks", "width"), [(1, 32, 32), (100, 64, 96), (1031, 32, 576)])
def test_product_of_the_transposed(passes: LearningPasses, rows: int, ranks: int, width: int) -> None:
    low, states = torch.randn(rows, ranks).bfloat16(), torch.randn(rows, width + 32).bfloat16()
    found = passes.multiply_transposed(low, states[:, :width])
    expected = low.double().T @ states[:, :width].double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4 * rows**0.5)
