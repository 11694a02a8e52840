"""Attention inside of texts on AMX tiles is that of the facade, and the facade's own where it does not fit."""

import pytest
import torch
from torch import Tensor

from epic_search.encoder.attention import Packing, attend
from epic_search.encoder.passes import Compiled

CPU = torch.device("cpu")
BATCHES = [[1], [16], [600], [*range(60, 0, -1)], [600, 512, 129, 128, 127, 33, 32, 31, 7, 1, 1]]


@pytest.fixture
def tiles(tiles: Compiled) -> Compiled:
    torch.manual_seed(0)
    return tiles


def states(tokens: int, heads: int, groups: int, width: int) -> list[Tensor]:
    """Queries, keys and values, in one row for each token."""
    joined = torch.randn(tokens, (heads + 2 * groups) * width).bfloat16()
    parts = joined.split([heads * width, groups * width, groups * width], dim=1)
    return [part.unflatten(1, (-1, width)) for part in parts]


def same_directions(found: Tensor, exact: Tensor) -> None:
    """Of what each token and head finds: cosines, and how far off the numbers are."""
    cosines = torch.cosine_similarity(found.float(), exact, dim=-1)
    assert cosines.min() >= 0.9999, cosines.min()
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both directions"])
@pytest.mark.parametrize(("heads", "groups", "width"), [(9, 3, 64), (4, 4, 32), (5, 1, 96)])
@pytest.mark.parametrize("lengths", BATCHES, ids=lambda lengths: f"{len(lengths)} texts, longest {lengths[0]}")
def test_attention_inside_texts(
    tiles: Compiled, lengths: list[int], heads: int, groups: int, width: int, causal: bool
) -> None:
    own, packing = states(sum(lengths), heads, groups, width), Packing(lengths, CPU)
    found = tiles.attend(*own, packing, causal=causal)
    same_directions(found, attend(*(x.float() for x in own), packing, causal=causal))


@torch.no_grad()
def test_every_length_up_to_600(tiles: Compiled) -> None:
    for start in range(1, 601, 25):
        lengths = [*range(start + 24, start - 1, -1)]
        own, packing = states(sum(lengths), 3, 1, 32), Packing(lengths, CPU)
        same_directions(tiles.attend(*own, packing), attend(*(x.float() for x in own), packing))


@torch.no_grad()
def test_tokens_that_ask_and_states_of_their_own(tiles: Compiled) -> None:
    """Queries of two tokens of each text; keys that do not stand in the rows of values; large scores."""
    lengths = [600, 70, 7, 1]
    packing, reads_BR = Packing(lengths, CPU), torch.tensor([[0, 599], [31, 32], [3, 6], [0, 0]])
    _, key, value = states(sum(lengths), 6, 2, 64)
    query, key = torch.randn(8, 6, 64).bfloat16() * 5, key.contiguous()
    options = {"scale": 0.5, "reads_BR": reads_BR}
    exact = attend(*(x.float() for x in (query, key, value)), packing, **options)
    same_directions(tiles.attend(query, key, value, packing, **options), exact)


@torch.no_grad()
def test_a_text_finds_the_same_alone_in_a_batch_and_with_any_number_of_threads(
    tiles: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [300, 200, 40, *[9] * 100]
    own, packing = states(sum(lengths), 9, 3, 64), Packing(lengths, CPU)
    together = tiles.attend(*own, packing)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(tiles.attend(*own, packing), together), threads
        alone = tiles.attend(*(x[300:500] for x in own), Packing([200], CPU))
        assert torch.equal(alone, together[300:500]), threads


@torch.no_grad()
def test_what_does_not_fit_is_the_facades(tiles: Compiled) -> None:
    lengths = [33, 5]
    packing, prefix = Packing(lengths, CPU), (torch.randn(7, 2, 64).bfloat16(), torch.randn(7, 2, 64).bfloat16())
    own = states(sum(lengths), 4, 2, 64)
    assert torch.equal(tiles.attend(*own, packing, prefix=prefix), attend(*own, packing, prefix=prefix))
    for others in ([x.float() for x in own], states(sum(lengths), 4, 2, 48)):
        assert torch.equal(tiles.attend(*others, packing), attend(*others, packing))
