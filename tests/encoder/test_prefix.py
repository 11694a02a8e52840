"""The shared prefix: run once, for every query of every thread, and never for another prompt, encoder or precision."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_search.encoder import Demonstration, Encoder, Prompt
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.prefix import Prefixes, common

TEXTS = ["red", "a somewhat longer query than the others", "seven or eight", "red"]
SHOWN = [Demonstration(query="red", passage="a colour"), Demonstration(query="seven", passage="a number")]
LONG = [Demonstration(query=f"what is number {i}", passage=f"the passage that says what {i} is") for i in range(3)]


@pytest.fixture
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return Encoder.load(tiny_encoder_folder, device="cpu", dtype="float32")


@pytest.fixture
def prefilled(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the prefixes that the encoder runs."""
    lengths: list[int] = []
    prefill = encoder.model.prefill

    def count(ids, **options):
        lengths.append(len(ids))
        return prefill(ids, **options)

    monkeypatch.setattr(encoder.model, "prefill", count)
    return lengths


def reference(encoder: Encoder, texts: list[str], prompt: Prompt) -> np.ndarray:
    """Through transformers, padded, prompt and all."""
    encoder.model.use_layout("padded")
    vectors = encoder.encode_queries(texts, prompt=prompt)
    encoder.model.use_layout("packed")
    return vectors


@pytest.mark.parametrize("kind", ["soft", "text"])
@pytest.mark.parametrize("pooling", ["concat", "last", "mean"])
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_vectors_are_those_of_the_whole_prompt(
    kind: str, pooling: str, dtype: str, least: float, tiny_config: EncoderConfig, tmp_path: Path
) -> None:
    fields = {**tiny_config.model_dump(), "pooling": pooling}
    if pooling != "concat":
        del fields["contextual"]
    Encoder.create(EncoderConfig.model_validate(fields), device="cpu").save(tmp_path / "e")
    encoder = Encoder.load(tmp_path / "e", device="cpu", dtype=dtype)
    prompt = encoder.prompt(task="name the kind", demonstrations=LONG, kind=kind)
    expected = reference(encoder, TEXTS, prompt)
    assert (encoder.encode_queries(TEXTS, prompt=prompt) * expected).sum(axis=1).min() >= least


def test_a_prompt_is_run_once_whoever_asks(encoder: Encoder, prefilled: list[int]) -> None:
    prompt = encoder.prompt(task="t", demonstrations=SHOWN)
    expected = encoder.encode_queries(TEXTS, prompt=prompt)
    prefilled.clear()
    same = replace(prompt)  # another object with the same content
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda p: encoder.encode_queries(TEXTS, prompt=p), [prompt, same] * 8))
    assert prefilled == []
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_threads_that_ask_at_once_run_a_prompt_once(encoder: Encoder, prefilled: list[int]) -> None:
    prompt = encoder.prompt(task="a task", kind="text", demonstrations=SHOWN)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: encoder.encode_queries([text], prompt=prompt), TEXTS * 4))
    assert len(prefilled) == 1


def test_a_prompt_that_differs_in_anything_is_another(encoder: Encoder, prefilled: list[int]) -> None:
    prompt = encoder.prompt(task="t", demonstrations=SHOWN)
    others = [
        encoder.prompt(task="u", demonstrations=SHOWN),
        encoder.prompt(task="t", demonstrations=SHOWN[::-1]),
        encoder.prompt(task="t", demonstrations=SHOWN, kind="text"),
        replace(prompt, vectors_SE=prompt.vectors_SE[[0, 1, 2, 1]]),
    ]
    prefilled.clear()
    for other in [prompt, *others]:
        expected = reference(encoder, TEXTS, other)
        assert (encoder.encode_queries(TEXTS, prompt=other) * expected).sum(axis=1).min() >= 0.99999
    assert len(prefilled) == 5


def test_prompts_of_one_batch_share_what_they_have_in_common(encoder: Encoder) -> None:
    task = "a task that all of them have"
    prompts = [encoder.prompt(task=task, demonstrations=shown) for shown in (SHOWN, SHOWN[::-1], LONG, [])]
    expected = np.concatenate([reference(encoder, [t], p) for t, p in zip(TEXTS, prompts, strict=True)])
    assert (encoder.encode_queries(TEXTS, prompts=prompts) * expected).sum(axis=1).min() >= 0.99999
    prefix, _ = encoder.prefixes.share([encoder._around(prompt) for prompt in prompts])
    assert len(prefix) == len(f"^Instruct: {task}\nQuery:")


def test_only_bos_stands_before_an_early_contextual_token(
    tiny_config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = tiny_config.contextual.model_copy(update={"position": "before_prefix"})
    Encoder.create(tiny_config.model_copy(update={"contextual": early}), device="cpu").save(tmp_path / "e")
    encoder = Encoder.load(tmp_path / "e", device="cpu", dtype="float32")
    prompt = encoder.prompt(task="t", demonstrations=SHOWN)
    monkeypatch.setattr(encoder.model, "prefill", lambda *_, **__: pytest.fail("nothing is shared here"))
    expected = reference(encoder, TEXTS, prompt)
    assert (encoder.encode_queries(TEXTS, prompt=prompt) * expected).sum(axis=1).min() >= 0.99999


def test_an_encoder_in_training_keeps_nothing(tiny_config: EncoderConfig) -> None:
    encoder = Encoder.create(tiny_config, device="cpu")
    prompt = encoder.prompt(task="t", demonstrations=SHOWN)
    before = encoder.encode_queries(TEXTS, prompt=prompt)
    with torch.no_grad():
        for parameter in encoder.model.soft_tokens.parameters():
            parameter.mul_(1.5)
    assert np.abs(encoder.encode_queries(TEXTS, prompt=prompt) - before).max() > 1e-4


def test_the_last_used_are_kept_within_the_bound(encoder: Encoder, prefilled: list[int]) -> None:
    prompts = [encoder.prompt(task=task, demonstrations=SHOWN) for task in "abc"]
    around = [encoder._around(prompt) for prompt in prompts]
    size = encoder.prefixes.share(around[:1])[0].nbytes
    prefixes = Prefixes(encoder.model, identity="", memory=2 * size)
    prefilled.clear()
    with torch.inference_mode():
        for i in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, which was not used since
            prefixes.share([around[i]])
    assert len(prefilled) == 4


def test_a_prefix_takes_the_bytes_of_its_keys_and_values(tiny_encoder_folder: Path) -> None:
    encoder = Encoder.load(tiny_encoder_folder, device="cpu", dtype="bfloat16")
    around = encoder._around(encoder.prompt(task="t", demonstrations=SHOWN))
    prefix, _ = encoder.prefixes.share([around])
    config = encoder.model.backbone.config
    per_token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert prefix.nbytes == per_token * len(common([around[0]]))


def test_a_saved_prefix_is_used_only_for_what_it_was_made_of(
    encoder: Encoder, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = encoder.prompt(task="t", demonstrations=LONG, kind="text")
    soft = encoder.prompt(task="t", demonstrations=LONG)
    expected = encoder.encode_queries(TEXTS, prompt=prompt)
    encoder.save_prefix(prompt, tmp_path / "prefix.safetensors")

    def restored(by: Encoder, of: Prompt, file: str = "prefix.safetensors") -> bool:
        return by.restore_prefix(of, tmp_path / file)

    cold = Encoder.load(tiny_encoder_folder, device="cpu", dtype="float32")
    assert restored(cold, prompt)
    monkeypatch.setattr(cold.model, "prefill", lambda *_, **__: pytest.fail("it was read from the file"))
    np.testing.assert_allclose(cold.encode_queries(TEXTS, prompt=prompt), expected, atol=1e-6)

    assert not restored(encoder, soft)
    assert not restored(encoder, replace(prompt, task="u"))
    assert not restored(Encoder.load(tiny_encoder_folder, device="cpu", dtype="bfloat16"), prompt)
    assert not restored(Encoder.load(tiny_encoder_folder, device="cpu", dtype="float32", max_length=60), prompt)
    (tmp_path / "damaged").write_bytes((tmp_path / "prefix.safetensors").read_bytes()[:100])
    assert not restored(encoder, prompt, "damaged") and not restored(encoder, prompt, "missing")

    encoder.save_prefix(soft, tmp_path / "prefix.safetensors")
    assert not list(tmp_path.glob("prefix*")), "a short prefix is no file, and what was there is no longer true"


def test_a_saved_prefix_holds_the_vectors_of_its_slots(encoder: Encoder, tmp_path: Path) -> None:
    prompt = encoder.prompt(task="t", demonstrations=LONG)
    around, other = (encoder._around(p) for p in (prompt, replace(prompt, vectors_SE=-prompt.vectors_SE)))
    encoder.prefixes.share([around])[0].save(tmp_path / "p")
    assert encoder.prefixes.restore(tmp_path / "p", around)
    assert not encoder.prefixes.restore(tmp_path / "p", other)
