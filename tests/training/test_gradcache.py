"""GradCache: the gradients of the plain path, whatever the size of the groups."""

import numpy as np
import pytest
import torch

from epic_search.encoder import Encoder
from epic_search.training.gradcache import cached_gradients
from epic_search.training.objective import epic_losses, prepare
from epic_search.training.pairs import Pair, PairSource
from epic_search.training.recipe import Objective

PAIRS = [
    Pair("find it", f"query number {i}", f"passage number {i} {'and more ' * i}", (f"wrong {i}",)) for i in range(9)
]


def gradients(
    encoder: Encoder, *, cached: bool, budget: int, **settings: object
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradient of every trained parameter."""
    encoder.model.zero_grad()
    objective = Objective.model_validate(settings)
    source = PairSource("test", PAIRS, weight=1, negatives=1, instruction_dropout=0.0)
    batch = source.batch(np.arange(len(PAIRS)), np.random.default_rng(0))
    passes = prepare(encoder, batch, objective, rng=np.random.default_rng(1), max_length=64)
    if cached:
        losses = cached_gradients(encoder, passes, objective, token_budget=budget, seed=3)
        assert not losses.total.requires_grad
    else:
        losses = epic_losses(encoder, passes, objective, token_budget=budget)
        losses.total.backward()
    found = {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}
    return losses.total.item(), found


@pytest.mark.parametrize(
    "settings",
    [
        {"demonstrations": 0},
        {"demonstrations": 5},
        {"demonstrations": 5, "stop_gradient": True},
        {"demonstrations": 3, "distill_weight": 1.0, "half_weight": 0.5},
        {"demonstrations": 5, "contrast_without": 0},
        {"demonstrations": 5, "contrast_without": 0, "stop_gradient": True},
        {"demonstrations": 2, "text_distill_weight": 1.0},
    ],
)
@pytest.mark.parametrize("budget", [64, 4096])
def test_gradients_are_those_of_the_plain_path(encoder: Encoder, settings: dict[str, object], budget: int) -> None:
    plain_loss, plain = gradients(encoder, cached=False, budget=4096, **settings)
    cached_loss, cached = gradients(encoder, cached=True, budget=budget, **settings)
    assert cached_loss == pytest.approx(plain_loss, abs=1e-4)
    assert cached.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(
            cached[name], gradient, rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("contrast_without", [1.0, 0.0])
def test_gradients_under_text_demonstrations(text_encoder: Encoder, contrast_without: float) -> None:
    """Their texts are tokens like others: no gradient goes through them to other vectors."""
    settings = {"demonstrations": 2, "contrast_without": contrast_without}
    plain_loss, plain = gradients(text_encoder, cached=False, budget=4096, **settings)
    cached_loss, cached = gradients(text_encoder, cached=True, budget=64, **settings)
    assert cached_loss == pytest.approx(plain_loss, abs=1e-4)
    assert cached.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=2e-3, atol=2e-5)


def test_only_one_group_has_its_activations_in_memory(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from epic_search.training import gradcache

    graphs = []
    plain = gradcache.embed_group

    def watched(*args: object) -> torch.Tensor:
        vectors = plain(*args)  # type: ignore[arg-type]
        if vectors.requires_grad:
            graphs.append(len(vectors))
        return vectors

    monkeypatch.setattr(gradcache, "embed_group", watched)
    gradients(encoder, cached=True, budget=64, demonstrations=5)
    assert sum(graphs) == 4 * len(PAIRS), "each row once: queries, passages, negatives, queries with demonstrations"
    assert max(graphs) < len(PAIRS)
