"""The attention facade: every way of computing it, against a mask written out in full."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder import attention
from epic_search.encoder.attention import Packing, attend

LENGTHS = [7, 7, 1, 12, 3]
HEADS, GROUPS, WIDTH = 6, 2, 8
CPU = torch.device("cpu")


def tensors(*, prefix: int, seed: int = 0) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None]:
    torch.manual_seed(seed)
    own = [torch.randn(sum(LENGTHS), heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    shared = (torch.randn(prefix, GROUPS, WIDTH), torch.randn(prefix, GROUPS, WIDTH))
    return own, shared if prefix else None


def plain(own: list[Tensor], shared: tuple[Tensor, Tensor] | None, *, causal: bool = True) -> Tensor:
    """All texts in one product, each token under a mask of what it may see."""
    text_T = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    seen_TT = text_T[:, None] == text_T[None]
    seen_TT = seen_TT.tril() if causal else seen_TT
    keys = own[1:]
    if shared is not None:
        seen_TT = F.pad(seen_TT, (len(shared[0]), 0), value=True)
        keys = [torch.cat(pair) for pair in zip(shared, keys, strict=True)]
    q, k, v = (x.transpose(0, 1)[None] for x in (own[0], *keys))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TT, enable_gqa=True)[0].transpose(0, 1)


READS = torch.tensor([[2, length - 1] if length > 2 else [0, length - 1] for length in LENGTHS])
ROWS = (torch.tensor([0, *itertools.accumulate(LENGTHS[:-1])])[:, None] + READS).flatten()


def varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux, scale, enable_gqa, window_size=(-1, -1), seqused_k=None):
    """What torch's `varlen_attn` computes on a GPU, sequence by sequence, with its arguments and what it returns."""
    assert enable_gqa == (q.shape[1] != k.shape[1]) and return_aux.lse
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == cu_q.diff().max() and max_k == cu_k.diff().max()
    assert window_size == (-1, -1) or torch.equal(cu_q, cu_k), "a causal window is aligned to the last key"
    outs, sums = [], []
    for i in range(len(cu_q) - 1):
        a, b = (
            q[cu_q[i] : cu_q[i + 1]],
            slice(cu_k[i], cu_k[i] + seqused_k[i] if seqused_k is not None else cu_k[i + 1]),
        )
        keys, values = (x[b].repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", a, keys) * (WIDTH**-0.5 if scale is None else scale)
        if window_size == (-1, 0):
            scores = scores.masked_fill(~torch.ones(scores.shape[1:]).tril().bool(), -torch.inf)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(sums, dim=1)  # (H, Q), as its kernels do


@pytest.mark.parametrize("prefix", [0, 5, 200])
@pytest.mark.parametrize("reads", [False, True], ids=["all tokens ask", "two of each text ask"])
@pytest.mark.parametrize("way", ["chosen", "without log-sum-exps", "varlen"])
def test_every_way_equals_the_mask_in_full(way: str, reads: bool, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own, shared = tensors(prefix=prefix)
    expected = plain(own, shared)
    query = own[0]
    if reads:
        query, expected = query[ROWS], expected[ROWS]
    arguments = (query, own[1], own[2], Packing(LENGTHS, CPU))
    reads_BR = READS if reads else None
    if way == "varlen":
        found = attention._varlen(varlen, *arguments, scale=None, causal=True, prefix=shared, reads_BR=reads_BR)
    else:
        if way == "without log-sum-exps":
            monkeypatch.setattr(attention, "cpu_flash", lambda: None)
        found = attend(*arguments, prefix=shared, reads_BR=reads_BR)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_both_directions_for_encoders() -> None:
    own, _ = tensors(prefix=0)
    packing = Packing(LENGTHS, CPU)
    expected = plain(own, None, causal=False)
    torch.testing.assert_close(attend(*own, packing, causal=False), expected, atol=2e-6, rtol=1e-5)
    found = attention._varlen(varlen, *own, packing, scale=None, causal=False, prefix=None, reads_BR=None)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_this_torch_has_what_cascade_attention_on_a_cpu_needs() -> None:
    """It is no public function. Where this fails, long prefixes are put in front of each text: right, but slower."""
    flash = attention.cpu_flash()
    assert flash is not None
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8)
    _, sums = flash(q, k, k)
    torch.testing.assert_close(sums, (q @ k.transpose(2, 3) * 8**-0.5).logsumexp(-1))


def test_torchs_varlen_attention_takes_what_it_is_given() -> None:
    """Its kernels need a GPU; that its arguments are called as here does not."""
    from inspect import signature

    found = attention.varlen_attention()
    if found is None:
        pytest.skip("this torch has no varlen_attn with grouped heads; GPU batches are padded")
    names = list(signature(found).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"return_aux", "scale", "window_size", "enable_gqa", "seqused_k"} <= set(names)
