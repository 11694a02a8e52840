"""Compiled passes compute what torch computes, and where they cannot be built, torch does."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from epic_search.encoder import Encoder, passes
from epic_search.encoder.attention import Packing
from epic_search.encoder.batching import lay_out
from epic_search.encoder.bert import Bert
from epic_search.encoder.frozen_bert import FrozenBert
from epic_search.encoder.passes import (
    EAGER,
    VARIABLE,
    Compiled,
    Eager,
    choose_passes,
    compiled,
    compiled_for,
    passes_choice,
)

CPU = torch.device("cpu")
TEXTS = [f"{'so many words ' * (i % 17)} and text {i}" for i in range(200)]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("tokens", [1, 37, 1000], ids=lambda tokens: f"{tokens} tokens")
def test_each_pass_equals_torch_in_float64(library: Compiled, tokens: int, dtype: torch.dtype, near: float) -> None:
    torch.manual_seed(0)
    states, added, weight = (torch.randn(*shape).to(dtype) for shape in ((tokens, 96), (tokens, 96), (96,)))
    total = (states + added).double()
    joined = torch.randn(tokens, 7, 16).to(dtype)
    cos, sin = (torch.randn(tokens, 1, 8).to(dtype) for _ in range(2))
    first, second = joined[:, :5].double().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    gate_up = torch.randn(tokens, 150).to(dtype) * 20
    gate_up[0, :4] = torch.tensor([-1e3, 1e3, -1e30, 1e30])
    gate, up = gate_up.double().chunk(2, dim=-1)
    for way in (library, EAGER):
        own, heads = states.clone(), joined.clone()
        normed = way.norm(own, weight, 1e-5, added_TD=added)
        assert torch.equal(own, states + added)
        close(normed, F.rms_norm(total, (96,), weight.double(), 1e-5), near=near)
        close(way.rotate(heads[:, :5], (cos, sin)), turned, near=near)
        assert torch.equal(heads[:, 5:], joined[:, 5:]), "other heads of the row stay as they are"
        close(way.gate(gate_up), F.silu(gate) * up, near=near)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("tokens", [1, 37, 1000], ids=lambda tokens: f"{tokens} tokens")
def test_each_pass_of_a_bert_equals_torch_in_float64(
    library: Compiled, tokens: int, dtype: torch.dtype, near: float
) -> None:
    torch.manual_seed(0)
    states, added, bias = (torch.randn(*shape).to(dtype) for shape in ((tokens, 90), (tokens, 90), (90,)))
    norm = torch.nn.LayerNorm(90, eps=1e-5, dtype=dtype).requires_grad_(False)
    norm.weight.normal_(), norm.bias.normal_()
    for total, options in ((states.double() + added, {}), (states.double() + added + bias, {"bias_D": bias})):
        expected = F.layer_norm(total, (90,), norm.weight.double(), norm.bias.double(), norm.eps)
        close(library.layer_norm(states, norm, added_TD=added, **options), expected, near=2 * near)


def close(found: torch.Tensor, expected: torch.Tensor, *, near: float) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.999999), ("bfloat16", 0.999)])
def test_the_same_vectors_from_any_thread(
    library: Compiled, tiny_encoder_folder: Path, dtype: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(tiny_encoder_folder, device="cpu", dtype=dtype)
    monkeypatch.setenv(VARIABLE, "off")
    plain_NE = encoder.encode_passages(TEXTS)
    used: list[object] = []
    monkeypatch.setattr("epic_search.encoder.decoder.choose_passes", lambda _: used.append(library) or library)
    with ThreadPoolExecutor(4) as pool:
        for found_NE in pool.map(encoder.encode_passages, [TEXTS] * 8):
            assert (found_NE * plain_NE).sum(axis=1).min() >= least
    assert used


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.999999), (torch.bfloat16, 0.999)])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_a_frozen_bert_is_that_of_transformers(
    library: Compiled,
    tiny_contextual_folder: Path,
    tmp_path: Path,
    activation: str,
    dtype: torch.dtype,
    least: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import BertModel

    torch.manual_seed(0)
    theirs = BertModel.from_pretrained(tiny_contextual_folder, add_pooling_layer=False, hidden_act=activation).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):  # which a fresh model has none of
            torch.nn.init.normal_(parameter, std=0.5)
    theirs.save_pretrained(tmp_path)
    model = Bert(tmp_path, dtype=dtype)
    rows = [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [10], [11, 12, 13]]
    packed, padded = (lay_out(rows, layout, device=CPU) for layout in ("packed", "padded"))
    frozen = FrozenBert(model)
    used: list[int] = []
    monkeypatch.setattr(
        "epic_search.encoder.frozen_bert.compiled_for", lambda _, tokens: used.append(tokens) or library
    )
    with torch.inference_mode():
        states_TC, states_BLC = frozen(packed)[0], frozen(padded)
        assert used == [14] and torch.equal(states_BLC, model(padded)), "padded texts go through the model itself"
        for start, row in zip(packed.starts_B.tolist(), rows, strict=True):
            expected_LC = theirs(input_ids=torch.tensor([row])).last_hidden_state[0]
            found_LC = states_TC[start : start + len(row)].float()
            assert F.cosine_similarity(found_LC, expected_LC).min() >= least


def test_nothing_compiled_where_gradients_are_recorded(
    library: Compiled, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd would not know what it writes."""
    monkeypatch.setattr(passes, "compiled", lambda *, build: library)
    monkeypatch.delenv(VARIABLE, raising=False)
    frozen, learning = torch.zeros(4, 8), torch.zeros(4, 8, requires_grad=True)
    assert choose_passes(frozen) is EAGER and compiled_for(frozen, tokens=4) is None
    with torch.no_grad():
        assert choose_passes(frozen) is library
        assert choose_passes(learning) is EAGER and compiled_for(learning, tokens=4) is None
    encoder = Encoder.load(tiny_encoder_folder, device="cpu", dtype="float32")
    tokens_TD = torch.randn(9, encoder.model.backbone.config.hidden_size, requires_grad=True)
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        encoder.model._decoder(tokens_TD, torch.arange(9), Packing([9], CPU))


@torch.no_grad()
def test_built_for_large_batches_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: Compiled) -> None:
    monkeypatch.setenv("EPIC_SEARCH_CACHE", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    few, many = torch.zeros(12, 8), torch.zeros(passes.WORTH, 8)
    assert choose_passes(few) is EAGER and not list(tmp_path.rglob("*.so"))
    assert isinstance(choose_passes(many), Compiled) and passes.library_path().is_file()
    assert isinstance(choose_passes(few), Compiled), "what is there serves all"
    assert choose_passes(many.half()) is EAGER
    monkeypatch.setenv(VARIABLE, "off")
    assert choose_passes(many) is EAGER
    assert passes_choice(CPU)[0].reason == f"{VARIABLE}=off"


def test_a_library_of_another_version_is_not_used_and_removed_once_there_is_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: Compiled
) -> None:
    monkeypatch.setenv("EPIC_SEARCH_CACHE", str(tmp_path))
    path = passes.library_path()
    environment, version = path.stem.split("-")
    older = path.with_name(f"{environment}-{'0' * len(version)}.so")
    others = [
        path.with_name(name) for name in (f"{'0' * len(environment)}-{version}.so", f"{environment}.so", "a-b.so")
    ]
    path.parent.mkdir()
    for file in (older, *others):
        file.write_bytes(b"not a library")
    assert compiled(build=False) is None and older.is_file()
    assert isinstance(compiled(build=True), Compiled)
    assert sorted(path.parent.iterdir()) == sorted([path, *others]), "other machines' stay, and what is not ours"


@torch.no_grad()
@pytest.mark.parametrize("compiler", [None, "false", "no-such-compiler"])
def test_without_a_compiler_torch_does_the_work(
    compiler: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EPIC_SEARCH_CACHE", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    if compiler is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(shutil, "which", lambda _: None)
    else:
        monkeypatch.setenv("CXX", compiler)
    assert isinstance(choose_passes(torch.zeros(passes.WORTH, 8)), Eager)
    choice, is_missed = passes_choice(CPU)
    assert is_missed and choice.value == "torch's own"
    assert choice.reason.startswith(f"{compiler} failed: " if compiler else "there is no C++ compiler")
    assert not list(tmp_path.rglob("*.so"))
