"""Products in int8 are those of the rounded numbers, to the last of them, and where they cannot be had that is said."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder import Encoder, passes
from epic_search.encoder.decoder import Decoder
from epic_search.encoder.passes import VARIABLE, Compiled
from epic_search.encoder.tiles import Weight
from epic_search.errors import UserError

ROUNDED = 2**-8  # a bfloat16 is within so much of what it stands for
COMPUTED = 1e-4  # and what is rounded within so much of what it should be


@pytest.fixture
def tiles(tiles: Compiled, monkeypatch: pytest.MonkeyPatch) -> Compiled:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(passes, "compiled", lambda *, build: tiles)
    return tiles


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers up to 127, and what each row of them is to be multiplied with."""
    scale = rows.float().abs().amax(dim=1, keepdim=True) / 127
    return (rows.float() * (1 / scale)).round(), scale


def product(states_TK: Tensor, weight: Weight) -> Tensor:
    """The layer's outputs by plain torch, exact in whole numbers."""
    (states, by_row), (plain, by_output) = rounded(states_TK), rounded(weight.plain_NK)
    sums = (states.double() @ plain.double().T).float() * by_row * by_output.T
    return sums if weight.bias_N is None else sums + weight.bias_N.float()


def parts_of(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """A weight and a bias."""
    torch.manual_seed(0)
    return (torch.randn(outputs, inputs) / inputs**0.5).bfloat16(), torch.randn(outputs).bfloat16()


@torch.no_grad()
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(64, 32), (576, 960), (1536, 576), (2048, 1056)], ids=["a step", "wide", "long", "blocks"]
)
@pytest.mark.parametrize("rows", [1, 7, 33, 1025], ids=lambda rows: f"{rows} rows")
def test_products_are_those_of_whole_numbers(
    tiles: Compiled, rows: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    weight, bias = parts_of(inputs, outputs)
    states = torch.randn(rows, inputs).bfloat16()
    plain, gated = (Weight(weight, bias if with_bias else None, gated=gated, int8=True) for gated in (False, True))
    expected = product(states, plain)
    gate, up = expected.chunk(2, dim=-1)
    close(tiles.linear(states, plain), expected)
    close(tiles.gelu(states, plain), F.gelu(expected))
    close(tiles.gated(states, gated), F.silu(gate) * up)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.float(), expected, rtol=ROUNDED + COMPUTED, atol=1e-5)


@torch.no_grad()
def test_no_output_is_further_off_than_rounding_allows(tiles: Compiled) -> None:
    weight, _ = parts_of(576, 960)
    states = (torch.randn(200, 576) * torch.randn(576).exp()).bfloat16()
    x, w = states.double(), weight.double()
    step_T1, step_N1 = (rows.abs().amax(dim=1, keepdim=True) / 127 for rows in (x, w))
    expected = x @ w.T
    bound = (
        x.abs().sum(dim=1, keepdim=True) * step_N1.T / 2
        + step_T1 / 2 * w.abs().sum(dim=1)
        + 576 * step_T1 * step_N1.T / 4
    )
    found = tiles.linear(states, Weight(weight, int8=True)).double()
    assert ((found - expected).abs() <= bound + ROUNDED * found.abs()).all()
    assert (found - expected).norm() / expected.norm() < 0.05, "and on the whole by far less"


@torch.no_grad()
def test_a_row_is_the_same_whatever_is_beside_it(tiles: Compiled) -> None:
    weight, states = Weight(parts_of(576, 576)[0], int8=True), torch.randn(70, 576).bfloat16()
    alone = tiles.linear(states[5:6], weight)
    states[0], states[1], states[2, 3], states[4, 5] = 0, 1e4, torch.nan, torch.inf
    found = tiles.linear(states, weight)
    assert torch.equal(found[5:6], alone) and (found[0] == 0).all()
    assert found[3].isfinite().all() and not found[2].isfinite().any() and not found[4].isfinite().any()


@torch.no_grad()
def test_what_tiles_do_not_hold_stays_in_bfloat16(tiles: Compiled) -> None:
    weight, bias = parts_of(96, 64)
    states = torch.randn(9, 96).bfloat16()
    assert torch.equal(tiles.linear(states, Weight(weight, bias, int8=True)), F.linear(states, weight, bias))


@pytest.fixture
def model_folder(tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    """A model whose products tiles hold."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(tiny_backbone_folder)
    config.hidden_size, config.intermediate_size, config.head_dim, config.max_position_embeddings = 64, 128, 16, 1024
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    shutil.copy(tiny_backbone_folder / "tokenizer.json", tmp_path / "model")
    return tmp_path / "model"


def test_the_same_vectors_as_by_plain_torch(
    tiles: Compiled, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{'so many words ' * (i % 17)} and text {i}" for i in range(60)]
    encoder, exact = (Encoder.load(model_folder, device="cpu", dtype=dtype) for dtype in ("int8", "float32"))
    assert encoder.dtype == torch.int8
    found_NE, exact_NE = encoder.encode_passages(texts), exact.encode_passages(texts)
    asked: list[int] = []

    def by_torch(_: Compiled, states_TK: Tensor, weight: Weight, then: int) -> Tensor:
        asked.append(then)
        outputs = product(states_TK, weight)
        if then == passes.GATE:
            gate, up = outputs.chunk(2, dim=-1)
            outputs = F.silu(gate) * up
        return outputs.bfloat16()

    monkeypatch.setattr(Compiled, "_product", by_torch)
    plain_NE = encoder.encode_passages(texts)
    ours, all_rounding = ((found_NE * other_NE).sum(axis=1) for other_NE in (plain_NE, exact_NE))
    assert {passes.NOTHING, passes.GATE} == set(asked)
    assert ours.min() > 0.999 and all_rounding.min() > 0.98, (ours.min(), all_rounding.min())


def test_prefixes_of_another_precision_are_not_taken(tiles: Compiled, model_folder: Path, tmp_path: Path) -> None:
    coarse, fine = (Encoder.load(model_folder, device="cpu", dtype=dtype) for dtype in ("int8", "bfloat16"))
    assert coarse.fingerprint == fine.fingerprint, "an index is asked in any precision"
    prompt = coarse.prompt(task="a task " * 30)
    coarse.save_prefix(prompt, tmp_path / "prefix")
    assert coarse.restore_prefix(prompt, tmp_path / "prefix")
    assert not fine.restore_prefix(fine.prompt(task="a task " * 30), tmp_path / "prefix")


def test_refused_where_nothing_is_compiled(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPIC_SEARCH_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"int8.*no-such-compiler failed.*use auto$"):
        Encoder.load(model_folder, device="cpu", dtype="int8")


def test_refused_without_tiles_and_without_packed_texts(
    tiles: Compiled, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epic_search.encoder.backbone.PACKABLE", ())
    with pytest.raises(UserError, match="cannot run in int8: llama is not among"):
        Encoder.load(model_folder, device="cpu", dtype="int8")
    monkeypatch.setattr(tiles, "_multiply", None)
    with pytest.raises(UserError, match="has no AMX; use auto"):
        Encoder.load(model_folder, device="cpu", dtype="int8")


def test_only_where_it_is_asked_for(tiles: Compiled, model_folder: Path) -> None:
    encoder = Encoder.load(model_folder, device="cpu")
    assert encoder.dtype != torch.int8 and isinstance(encoder.model._decoder, Decoder)
    weights = [weight for layer in encoder.model._decoder._layers for weight in vars(layer).values()]
    assert not any(weight.is_int8 for weight in weights if isinstance(weight, Weight))
