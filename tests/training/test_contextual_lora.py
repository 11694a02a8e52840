"""LoRA layers on the Contextual encoder: gradients as of plain peft, and the same vectors however they are kept."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import BertModel

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.checkpoint import find
from epic_search.encoder.config import EncoderConfig, LoraSettings
from epic_search.encoder.export import export
from epic_search.encoder.tokenizer import load_tokenizer
from epic_search.errors import UserError
from epic_search.training.gradcache import cached_gradients
from epic_search.training.learner import make_optimizer
from epic_search.training.objective import epic_losses
from epic_search.training.pairs import Pair, PairSource
from epic_search.training.passes import Passes, prepare
from epic_search.training.recipe import Objective, Recipe

TEXTS = ["one text", "another", "and a third, longer than the two before", "another one", ""]
PAIRS = [
    Pair("find it", f"query number {i}", f"passage number {i} {'and more ' * i}", (f"wrong {i}",)) for i in range(7)
]
Gradients = dict[str, torch.Tensor]


@pytest.fixture
def config(tiny_config: EncoderConfig) -> EncoderConfig:
    return with_lora(tiny_config, LoraSettings(rank=4, alpha=8))


def with_lora(config: EncoderConfig, lora: LoraSettings) -> EncoderConfig:
    assert config.contextual is not None
    contextual = config.contextual.model_copy(update={"lora": lora, "residual": True})
    return config.model_copy(update={"contextual": contextual})


def learning(config: EncoderConfig) -> Encoder:
    """A trainable encoder in which all that starts at zero does something, as after some steps."""
    torch.manual_seed(6)
    encoder = Encoder.create(config, device="cpu")
    assert encoder.model.residual is not None
    torch.nn.init.normal_(encoder.model.residual.states.weight, std=0.1)
    for name, parameter in encoder.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def vectors(encoder: Encoder) -> np.ndarray:
    """Of passages and, after them, of queries under a task and demonstrations."""
    prompt = encoder.prompt(task="find", demonstrations=[Demonstration(query="a", passage="b")])
    return np.concatenate([encoder.encode_passages(TEXTS), encoder.encode_queries(TEXTS, prompt=prompt)])


def passes_of(encoder: Encoder, objective: Objective, *, recompute: bool = False) -> Passes:
    source = PairSource("test", PAIRS, weight=1, negatives=1, instruction_dropout=0.0)
    batch = source.batch(np.arange(len(PAIRS)), np.random.default_rng(0))
    rng = np.random.default_rng(1)
    return prepare(encoder, batch, objective, rng=rng, max_length=64, recompute=recompute)


def plain_peft(encoder: Encoder, texts: list[str]) -> tuple[BertModel, torch.Tensor]:
    """The Contextual encoder as transformers and peft build it, with the same weights, and its vectors text by text."""
    assert encoder.checkpoint.contextual is not None and encoder.model.contextual is not None
    bert = BertModel.from_pretrained(encoder.checkpoint.contextual, add_pooling_layer=False).eval()
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), bert)
    bert.load_state_dict(encoder.model.contextual.model.state_dict(), strict=True)
    tokenizer = load_tokenizer(encoder.checkpoint.contextual)
    tokenizer.enable_truncation(64)
    states = [bert(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0] for text in texts]
    return bert, torch.stack([F.normalize(state_LC.mean(dim=0), dim=0) for state_LC in states])


def adapters(model: torch.nn.Module) -> Gradients:
    """The gradients of LoRA layers, by name."""
    return {name: p.grad for name, p in model.named_parameters() if "lora_" in name and p.grad is not None}


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys() and len(found) > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_vectors_and_gradients_are_those_of_plain_peft(config: EncoderConfig, layout: str) -> None:
    encoder = learning(config)
    contextual = encoder.model.contextual
    assert contextual is not None
    contextual.use_layout(layout)
    mine_NC = contextual.encode(TEXTS)
    bert, theirs_NC = plain_peft(encoder, TEXTS)
    torch.testing.assert_close(mine_NC, theirs_NC, atol=1e-5, rtol=1e-5)
    weights_NC = torch.randn(theirs_NC.shape)
    for vectors_NC in (mine_NC, theirs_NC):
        (vectors_NC * weights_NC).sum().backward()
    assert_equal(adapters(contextual.model), adapters(bert))
    assert len(adapters(bert)) == 2 * 2 * 6, "A and B of all six linear layers of both blocks"


@pytest.mark.parametrize(
    "settings",
    [
        {"demonstrations": 4},
        {"demonstrations": 4, "stop_gradient": True},
        {"demonstrations": 0},
        {"demonstrations": 2, "text_distill_weight": 1.0},
    ],
)
def test_the_whole_objective_reaches_it(config: EncoderConfig, settings: dict[str, object]) -> None:
    """Through the residual, the Contextual token and the soft tokens of both passes, as where peft made the vectors."""
    encoder, objective = learning(config), Objective.model_validate(settings)
    passes = passes_of(encoder, objective)
    bert, theirs_NC = plain_peft(encoder, [*passes.batch.queries, *passes.batch.passages])
    epic_losses(encoder, passes, objective, token_budget=256).total.backward()
    epic_losses(
        encoder, dataclasses.replace(passes, context_NC=theirs_NC), objective, token_budget=256
    ).total.backward()
    assert encoder.model.contextual is not None
    assert_equal(adapters(encoder.model.contextual.model), adapters(bert))


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{"demonstrations": 0}, {"demonstrations": 5}, {"demonstrations": 5, "contrast_without": 0.0, "half_weight": 0.5}],
)
def test_gradient_cache_gives_the_same_gradients(
    config: EncoderConfig, settings: dict[str, object], recompute: bool
) -> None:
    encoder, objective = learning(config), Objective.model_validate(settings)
    losses = epic_losses(encoder, passes_of(encoder, objective), objective, token_budget=4096)
    losses.total.backward()
    plain = {name: p.grad for name, p in encoder.model.named_parameters() if p.grad is not None}
    encoder.model.zero_grad()
    passes = passes_of(encoder, objective, recompute=recompute)
    assert cached_gradients(encoder, passes, objective, token_budget=64, seed=3).total.item() == pytest.approx(
        losses.total.item(), abs=1e-4
    )
    assert_equal({name: p.grad for name, p in encoder.model.named_parameters() if p.grad is not None}, plain)
    assert any("contextual" in name for name in plain)


def test_it_reads_each_text_once_a_step_or_once_more_to_save_memory(
    config: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, which draws the same numbers when a text is read again."""
    monkeypatch.setattr("epic_search.encoder.contextual.token_budget", lambda device: 100)
    encoder = learning(with_lora(config, LoraSettings(rank=4, alpha=8, dropout=0.3)))
    assert encoder.model.contextual is not None
    read: list[int] = []
    encoder.model.contextual.model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].ids.numel()))
    objective = Objective(demonstrations=4)
    found: list[tuple[list[int], Gradients]] = []
    for recompute in (False, True):
        encoder.model.zero_grad()
        read.clear()
        torch.manual_seed(9)
        passes = passes_of(encoder, objective, recompute=recompute)
        torch.manual_seed(10)
        epic_losses(encoder, passes, objective, token_budget=4096).total.backward()
        found.append((list(read), adapters(encoder.model.contextual.model)))
    (once, plain), (again, recomputed) = found
    assert len(once) > 3 and sorted(again) == sorted(once * 2)
    assert_equal(recomputed, plain)


def test_a_frozen_one_keeps_no_graph(tiny_config: EncoderConfig) -> None:
    encoder = Encoder.create(tiny_config, device="cpu")
    passes = passes_of(encoder, Objective())
    assert passes.context_NC is not None and not passes.context_NC.requires_grad
    assert encoder.model.contextual is not None and not encoder.model.contextual.learns


def test_what_was_trained_is_saved_and_merged(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = learning(config)
    trained = vectors(encoder)
    encoder.save(tmp_path / "encoder")
    loaded = Encoder.load(tmp_path / "encoder", device="cpu", dtype="float32")
    np.testing.assert_allclose(vectors(loaded), trained, atol=1e-5)
    coarse = vectors(Encoder.load(tmp_path / "encoder", device="cpu", dtype="bfloat16"))
    assert (coarse * trained).sum(axis=1).min() > 0.999
    onward = Encoder.create(config, start=tmp_path / "encoder", device="cpu")
    np.testing.assert_allclose(vectors(onward), trained, atol=1e-5)
    assert config.contextual is not None
    frozen = config.model_copy(update={"contextual": config.contextual.model_copy(update={"lora": None})})
    without = Encoder.create(frozen, start=tmp_path / "encoder", device="cpu")
    assert np.abs(vectors(without) - trained).max() > 0.01, "they do something"


def test_peft_reads_the_folder(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = learning(config)
    encoder.save(tmp_path / "encoder")
    assert encoder.checkpoint.contextual is not None and encoder.model.contextual is not None
    bert = BertModel.from_pretrained(encoder.checkpoint.contextual, add_pooling_layer=False)
    theirs = PeftModel.from_pretrained(bert, str(tmp_path / "encoder" / "contextual_lora")).merge_and_unload()
    loaded = Encoder.load(tmp_path / "encoder", device="cpu", dtype="float32").model.contextual
    assert loaded is not None
    for name, weight in loaded.model.named_parameters():
        torch.testing.assert_close(weight, theirs.get_parameter(name), atol=1e-6, rtol=1e-5)


def test_the_fingerprint_covers_it_and_it_may_not_be_missing(config: EncoderConfig, tmp_path: Path) -> None:
    learning(config).save(tmp_path / "encoder")
    original = find(str(tmp_path / "encoder")).fingerprint()
    file = tmp_path / "encoder" / "contextual_lora" / "adapter_model.safetensors"
    save_file({name: value + 1e-3 for name, value in load_file(file).items()}, file)
    assert find(str(tmp_path / "encoder")).fingerprint() != original
    file.unlink()
    with pytest.raises(UserError, match="it has no contextual_lora/adapter_model"):
        find(str(tmp_path / "encoder"))


@pytest.mark.parametrize("form", ["merged", "adapter", "sentence-transformers"])
def test_exports_have_the_same_vectors(config: EncoderConfig, tmp_path: Path, form: str) -> None:
    if form == "sentence-transformers":
        pytest.importorskip("sentence_transformers")
    encoder = learning(config)
    encoder.save(tmp_path / "encoder")
    made = export(tmp_path / "encoder", out=tmp_path / "made", format=form)  # type: ignore[arg-type]
    loaded = Encoder.load(made.folder, device="cpu", dtype="float32")
    assert (vectors(loaded) * vectors(encoder)).sum(axis=1).min() > 0.9999
    assert (loaded.fingerprint == made.source) == (form == "adapter")
    card = (made.folder / "README.md").read_text()
    assert "LoRA layers of the backbone and the Contextual encoder, projectors" in card
    if form == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(made.folder), trust_remote_code=True, device="cpu")
        found = model.encode_document(TEXTS)
        assert (found * encoder.encode_passages(TEXTS)).sum(axis=1).min() > 0.9999


def test_a_run_moves_its_adapters_alone_and_goes_on_exactly(
    small_recipe: Callable[..., Recipe], run: Callable, config: EncoderConfig
) -> None:
    recipe = small_recipe(encoder=config.model_dump())
    result, curve = run(recipe, "whole")
    again, same = run(recipe, "parts", stop=3)
    assert same == curve
    name = Path("contextual_lora") / "adapter_model.safetensors"
    mine, theirs = load_file(again.encoder / name), load_file(result.encoder / name)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key])
        assert "lora_B" not in key or value.abs().max() > 0, f"{key} has not moved from zero"
    _, same = run(small_recipe(encoder=config.model_dump(), optimizer={"gradient_cache": True}), "cached")
    np.testing.assert_allclose([loss for _, loss in same], [loss for _, loss in curve], atol=1e-4)
    onward, _ = run(small_recipe(start=result.encoder), "onward")
    assert not torch.equal(load_file(onward.encoder / name)[key], theirs[key])


def test_it_learns_beside_a_backbone_that_does(
    small_recipe: Callable[..., Recipe], run: Callable, config: EncoderConfig
) -> None:
    own = config.model_copy(update={"lora": None})
    recipe = small_recipe(encoder=own.model_dump(), optimizer={"backbone": "layers", "learning_rate": 1e-3})
    result, _ = run(recipe, "run")
    found = find(str(result.encoder))
    trained = Encoder.create(found.config, start=result.encoder, device="cpu", backbone="layers")
    np.testing.assert_allclose(
        vectors(Encoder.load(result.encoder, device="cpu", dtype="float32")), vectors(trained), atol=1e-5
    )
    assert trained.model.contextual is not None and trained.model.contextual.learns


def test_its_learning_rate_is_that_of_lora(small_recipe: Callable[..., Recipe], config: EncoderConfig) -> None:
    settings = small_recipe(optimizer={"learning_rate": 3e-4, "projector_learning_rate": 1e-4}).optimizer
    encoder = learning(config)
    assert encoder.model.contextual is not None
    peaks = {id(p): group["peak"] for group in make_optimizer(encoder, settings).param_groups for p in group["params"]}
    trained = [p for p in encoder.model.contextual.parameters() if p.requires_grad]
    assert trained and {peaks[id(p)] for p in trained} == {3e-4}


def test_it_cannot_be_its_own_teacher(
    small_recipe: Callable[..., Recipe], config: EncoderConfig, run: Callable
) -> None:
    recipe = small_recipe(encoder=config.model_dump(), objective={"geometry_weight": 1.0})
    with pytest.raises(UserError, match=r"which would follow itself; name another teacher, such as 'st:"):
        run(recipe, "run")
