"""Products on AMX tiles are those of torch, to the last rounding, and torch's own wherever tiles do not fit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder import Encoder
from epic_search.encoder.passes import EAGER, VARIABLE, Compiled
from epic_search.encoder.tiles import WORTH, Weight

ROUNDED = 2**-8  # a bfloat16 is within so much of what it stands for
COMPUTED = 1e-4  # and what is rounded within so much of what it should be


def parts_of(inputs: int, outputs: int, *, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """A weight and a bias."""
    torch.manual_seed(0)
    return (torch.randn(outputs, inputs) / inputs**0.5).to(dtype), torch.randn(outputs).to(dtype)


def ready(plain_NK: Tensor, bias_N: Tensor | None = None, *, gated: bool = False) -> Weight:
    """A weight that is worth packing."""
    weight = Weight(plain_NK, bias_N, gated=gated)
    weight.fits(plain_NK.new_empty(WORTH, plain_NK.shape[1]))
    return weight


@torch.no_grad()
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(32, 32), (64, 96), (576, 960), (1536, 576), (2048, 416)],
    ids=["a step", "three panels", "one slice", "three slices", "slices and blocks"],
)
@pytest.mark.parametrize("rows", [1, 7, 33, 1025], ids=lambda rows: f"{rows} rows")
def test_products_equal_torch_in_float32(
    tiles: Compiled, rows: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    weight, bias = parts_of(inputs, outputs)
    states = torch.randn(rows, inputs).to(torch.bfloat16)
    expected = F.linear(states.float(), weight.float(), bias.float() if with_bias else None)
    gate, up = expected.chunk(2, dim=-1)
    plain, gated = (ready(weight, bias if with_bias else None, gated=gated) for gated in (False, True))
    close(tiles.linear(states, plain), expected)
    close(tiles.gelu(states, plain), F.gelu(expected))
    close(tiles.gated(states, gated), F.silu(gate) * up)
    assert {"packed"} <= vars(plain).keys() & vars(gated).keys(), "tiles have made these"


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.float(), expected, rtol=ROUNDED + COMPUTED, atol=1e-5)


@torch.no_grad()
def test_numbers_far_from_zero_pass_the_activations(tiles: Compiled) -> None:
    states = torch.zeros(WORTH, 32, dtype=torch.bfloat16)
    states[:6, 0] = torch.tensor([-1e30, -1e3, -20, 20, 1e3, 1e30])
    identity = torch.eye(32, dtype=torch.bfloat16)
    ones = torch.zeros_like(identity)
    ones[0, 0] = 1  # gates; what they let through is their own number
    gated = ready(torch.cat([ones[:16], ones[:16]]), gated=True)
    close(tiles.gelu(states, ready(identity)), F.gelu(states.float()))
    close(tiles.gated(states, gated), (F.silu(states.float()) * states.float())[:, :16])


@torch.no_grad()
@pytest.mark.parametrize(
    ("inputs", "outputs", "dtype", "rows"),
    [
        (48, 64, torch.bfloat16, WORTH),
        (64, 80, torch.bfloat16, WORTH),
        (64, 64, torch.float32, WORTH),
        (64, 64, torch.bfloat16, WORTH // 4),
    ],
    ids=["odd inputs", "odd outputs", "float32", "few rows"],
)
def test_what_tiles_do_not_fit_is_left_to_torch(
    tiles: Compiled, inputs: int, outputs: int, dtype: torch.dtype, rows: int
) -> None:
    weight, bias = parts_of(inputs, outputs, dtype=dtype)
    states = torch.randn(rows, inputs).to(dtype)
    plain, gated = Weight(weight, bias), Weight(weight, bias, gated=True)
    assert torch.equal(tiles.linear(states, plain), EAGER.linear(states, plain))
    assert torch.equal(tiles.gelu(states, plain), F.gelu(F.linear(states, weight, bias)))
    near = ROUNDED if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(tiles.gated(states, gated), EAGER.gated(states, gated), rtol=4 * near, atol=near)
    assert "packed" not in vars(plain) and "packed" not in vars(gated)


@torch.no_grad()
def test_a_weight_is_packed_once_enough_rows_have_passed(tiles: Compiled) -> None:
    weight = Weight(parts_of(64, 64)[0])
    few = torch.randn(WORTH // 2, 64).to(torch.bfloat16)
    tiles.linear(few, weight)
    assert "packed" not in vars(weight)
    tiles.linear(few, weight)
    assert "packed" in vars(weight)


@torch.no_grad()
@pytest.mark.parametrize("rows", [5, 40, 1025])
def test_two_threads_give_what_one_gives(tiles: Compiled, rows: int) -> None:
    weight, bias = parts_of(1536, 576)
    plain, states = ready(weight, bias), torch.randn(rows, 1536).to(torch.bfloat16)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(tiles.linear(states, plain))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_same_vectors(tiles: Compiled, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'so many words ' * (i % 17)} and text {i}" for i in range(200)]
    encoder = Encoder.load(tiny_encoder_folder, device="cpu", dtype="bfloat16")
    monkeypatch.setenv(VARIABLE, "off")
    plain_NE = encoder.encode_passages(texts)
    weights = [weight for layer in encoder.model._decoder._layers for weight in vars(layer).values()]
    weights = [weight for weight in weights if isinstance(weight, Weight)]
    assert not any("packed" in vars(weight) for weight in weights), f"{VARIABLE}=off leaves all products to torch"
    monkeypatch.setattr("epic_search.encoder.decoder.choose_passes", lambda _: tiles)
    found_NE = encoder.encode_passages(texts)
    assert sum("packed" in vars(weight) for weight in weights) >= 4, "those that all tokens pass"
    assert (found_NE * plain_NE).sum(axis=1).min() >= 0.999
