"""The compiled passes of training, both ways, are what torch computes in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.learning_passes import LearningPasses
from epic_search.encoder.passes import Compiled

ROUNDED = 2**-8  # a bfloat16 is within so much of what it stands for
COMPUTED = 1e-3  # and what is rounded within so much of what it should be


@pytest.fixture
def passes(library: Compiled) -> LearningPasses:
    if not library.has_tiles:
        pytest.skip("this processor, or its system, has no AMX")
    torch.manual_seed(0)
    return LearningPasses(library)


def close(found: Tensor, expected: Tensor, *, sums: float = 0.0) -> None:
    """`sums`: what rounding may move a sum by, of terms that are much larger than it."""
    torch.testing.assert_close(found.double(), expected, rtol=ROUNDED + COMPUTED, atol=1e-5 + sums)


def wide(numbers: Tensor) -> Tensor:
    return numbers.double().requires_grad_()


@pytest.mark.parametrize("rows", [1, 37, 500])
def test_norm(passes: LearningPasses, rows: int) -> None:
    states, added, of_normed, before = (torch.randn(4, rows, 96).bfloat16() * 3).unbind()
    weight = torch.randn(96).bfloat16()
    own = states.clone()
    normed, scales = passes.norm(own, weight, 1e-5, room=32, added_TD=added)
    assert torch.equal(own, states + added)
    assert not normed[:, 96:].any(), "room is filled with zeros"
    total = wide(own)
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
    both = wide(gate_up)
    expected = F.silu(both[:, :96]) * both[:, 96:]
    found = passes.gate(gate_up, room=32)
    close(found[:, :96], expected)
    gradient, again = passes.gate_backward(of_out, gate_up, room=64)
    assert torch.equal(again, found[:, :96]) and not found[:, 96:].any() and not gradient[:, 192:].any()
    (expected_gradient,) = torch.autograd.grad(expected, both, of_out.double())
    close(gradient[:, :192], expected_gradient, sums=1e-3)


def test_softmax_of_what_is_seen(passes: LearningPasses) -> None:
    B, H, Q, L = 3, 2, 5, 37
    scores, seen_BQ = torch.randn(B, H, Q, L).bfloat16() * 9, torch.randint(1, L + 1, (B, Q))
    exact = wide(scores)
    hidden = torch.arange(L) >= seen_BQ[:, None, :, None]
    expected = (0.3 * exact).masked_fill(hidden, -torch.inf).softmax(dim=-1)
    shares = scores.clone()
    passes.softmax(shares, seen_BQ, 0.3)
    close(shares, expected)
    of_shares = torch.randn(B, H, Q, L).bfloat16()
    (of_scores,) = torch.autograd.grad(expected, exact, of_shares.double())
    passes.softmax_backward(of_shares, shares, 0.3)
    close(of_shares, of_scores, sums=5e-3)
    assert not of_shares[hidden.expand_as(of_shares)].any()


def test_heads_of_texts_there_and_back(passes: LearningPasses) -> None:
    lengths, W = [7, 5, 5], 8
    starts = torch.tensor([3, 10, 15, 20])
    states = torch.randn(25, 6 * W).bfloat16()
    heads = passes.split_heads(states, starts, first=2, heads=3, width=W, longest=7)
    for text, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        expected = states[start : start + length, 2 * W : 5 * W].unflatten(1, (3, W)).transpose(0, 1)
        assert torch.equal(heads[text, :, :length], expected) and not heads[text, :, length:].any()
    back = torch.zeros_like(states)
    passes.join_heads(back, heads, starts, first=2)
    assert torch.equal(back[3:20, 2 * W : 5 * W], states[3:20, 2 * W : 5 * W])
    assert back.count_nonzero() == states[3:20, 2 * W : 5 * W].count_nonzero()


@pytest.mark.parametrize(("rows", "ranks", "width"), [(1, 32, 32), (100, 64, 96), (1031, 32, 576)])
def test_product_of_the_transposed(passes: LearningPasses, rows: int, ranks: int, width: int) -> None:
    low, states = torch.randn(rows, ranks).bfloat16(), torch.randn(rows, width + 32).bfloat16()
    found = passes.multiply_transposed(low, states[:, :width])
    expected = low.double().T @ states[:, :width].double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4 * rows**0.5)
