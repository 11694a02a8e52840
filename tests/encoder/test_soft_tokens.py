"""Projectors start as isometries times the gain, and batches keep their promises."""

import numpy as np
import pytest
import torch

from epic_search.encoder.batching import batches, pack, pad
from epic_search.encoder.soft_tokens import Projector
from epic_search.training.recipe import Optimizer


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(("width_in", "width_out"), [(16, 48), (48, 16), (32, 32)])
def test_learned_projectors_start_as_isometries(kind: str, width_in: int, width_out: int) -> None:
    torch.manual_seed(0)
    projector = Projector(kind, width_in, width_out, token_norm=3.0)
    vectors = torch.nn.functional.normalize(torch.randn(200, width_in), dim=-1)
    tokens = projector(vectors).detach()
    assert tokens.norm(dim=-1).mean().item() == pytest.approx(3.0, rel=0.05)
    if width_in <= width_out:
        torch.testing.assert_close(tokens @ tokens.T / 9.0, vectors @ vectors.T, atol=1e-5, rtol=1e-4)


def test_fixed_projectors() -> None:
    vectors = torch.randn(5, 8)
    torch.testing.assert_close(Projector("identity", 8, 8, token_norm=3.0)(vectors), vectors)
    norms = Projector("rescale", 8, 8, token_norm=3.0)(vectors).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((5,), 3.0))


def test_batches_cover_every_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=500).tolist()
    seen: list[int] = []
    for indices in batches(lengths, token_budget=256):
        assert len(indices) == 1 or len(indices) * max(lengths[i] for i in indices) <= 256
        seen += indices.tolist()
    assert sorted(seen) == list(range(500))
    assert [i.tolist() for i in batches([300], token_budget=256)] == [[0]]
    assert list(batches([], token_budget=256)) == []


def test_packed_and_padded_rows_hold_the_same_tokens() -> None:
    rows = [[1, 2, 3], [4], [5, 6]]
    packed, padded = pack(rows, device=torch.device("cpu")), pad(rows, device=torch.device("cpu"))
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6]] and packed.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert padded.ids.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert padded.mask_BL.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    for batch in (packed, padded):
        last_B = batch.starts_B + torch.tensor([len(row) - 1 for row in rows])
        assert batch.ids.flatten()[last_B].tolist() == [3, 4, 6]


def test_projectors_stay_near_token_embeddings_in_the_first_steps() -> None:
    """At the default rate: a rate ten times higher turns all soft tokens into one huge vector within twenty steps."""
    rate = Optimizer(steps=1).projector_learning_rate
    torch.manual_seed(0)
    projector = Projector("mlp", 1152, 576, token_norm=3.0)
    vectors = torch.nn.functional.normalize(torch.randn(32, 1152), dim=-1)
    direction = torch.randn(576)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(20):  # the gradient that moves a projector most: the same for every vector
        optimizer.zero_grad()
        (-projector(vectors) @ direction).mean().backward()
        optimizer.step()
    tokens = projector(vectors).detach()
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    assert tokens.norm(dim=-1).mean() < 6.0
    assert ((unit @ unit.T).sum() - 32) / (32 * 31) < 0.6
