"""Demonstrations as texts: whole in every prompt, with a soft encoder and with one that is trained for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from epic_search.encoder import Demonstration, Encoder, Prompt
from epic_search.encoder.checkpoint import find
from epic_search.errors import UserError

TEXTS = ["short", "a text of middling length, with some words in it", "é ü 漢字 🙂", "x"]
DEMONSTRATIONS = [Demonstration(query="red", passage="a colour"), Demonstration(query="seven", passage="a number")]


@pytest.fixture(scope="module")
def text_encoder(tiny_text_folder: Path) -> Encoder:
    return Encoder.load(tiny_text_folder, device="cpu", dtype="float32")


def written_out(encoder: Encoder, text: str, *, task: str) -> list[int]:
    """The whole input as one string of the template's words; the tiny tokenizer knows a byte a token."""
    shown = "".join(f"Query:{d.query}\nResponse:{d.passage}\n" for d in DEMONSTRATIONS)
    before, after = (
        encoder.token_ids([part], max_length=1000)[0]
        for part in (f"Instruct: {task}\n{shown}Query:", f"{text}\nResponse:")
    )
    return [256, *before, -2, *after, 257]


def test_the_texts_stand_where_the_slots_would(text_encoder: Encoder) -> None:
    prompt = text_encoder.prompt(task="name it", demonstrations=DEMONSTRATIONS)
    row = text_encoder.layout(prompt).row(text_encoder.token_ids(["abc"])[0])
    assert row.ids == written_out(text_encoder, "abc", task="name it")
    assert row.ids[row.start : row.stop] == text_encoder.token_ids(["abc"])[0]
    assert prompt.kind == "text" and prompt.vectors_SE.shape == (0, text_encoder.dim)


def test_a_vector_does_not_depend_on_neighbours_or_layout(tiny_text_folder: Path) -> None:
    encoder = Encoder.load(tiny_text_folder, device="cpu", dtype="float32")
    prompt = encoder.prompt(task="name the kind", demonstrations=DEMONSTRATIONS)
    together = encoder.encode_queries(TEXTS, prompt=prompt)
    alone = np.concatenate([encoder.encode_queries([text], prompt=prompt) for text in TEXTS])
    encoder.model.use_layout("padded")
    padded = encoder.encode_queries(TEXTS, prompt=prompt)
    for other in (alone, padded):
        assert (together.astype(np.float64) * other).sum(axis=1).min() >= 0.99999
    without = encoder.encode_queries(TEXTS, prompt=encoder.prompt(task="name the kind"))
    turned_round = encoder.prompt(task="name the kind", demonstrations=DEMONSTRATIONS[::-1])
    for other in (without, encoder.encode_queries(TEXTS, prompt=turned_round)):
        assert (together * other).sum(axis=1).max() < 0.9999, "the demonstrations are read, in their order"


def test_a_soft_encoder_reads_texts_when_asked(tiny_encoder: Encoder, text_encoder: Encoder) -> None:
    soft = tiny_encoder.prompt(task="t", demonstrations=DEMONSTRATIONS)
    text = tiny_encoder.prompt(task="t", demonstrations=DEMONSTRATIONS, kind="text")
    assert (soft.kind, text.kind) == ("soft", "text")
    as_soft, as_text = (tiny_encoder.encode_queries(TEXTS, prompt=prompt) for prompt in (soft, text))
    assert (as_soft * as_text).sum(axis=1).max() < 0.9999
    trained_for_text = text_encoder.encode_queries(
        TEXTS, prompt=text_encoder.prompt(task="t", demonstrations=DEMONSTRATIONS)
    )
    np.testing.assert_allclose(as_text, trained_for_text, atol=1e-6, err_msg="the weights are the same")


def test_a_text_prompt_survives_the_disk_and_belongs_to_no_encoder(
    tiny_encoder: Encoder, text_encoder: Encoder, tmp_path: Path
) -> None:
    prompt = text_encoder.prompt(task="née", demonstrations=DEMONSTRATIONS)
    prompt.save(tmp_path / "p.safetensors")
    loaded = Prompt.load(tmp_path / "p.safetensors")
    assert (loaded.task, loaded.demonstrations, loaded.kind) == (prompt.task, prompt.demonstrations, "text")
    mine = tiny_encoder.prompt(task="née", demonstrations=DEMONSTRATIONS, kind="text")
    np.testing.assert_array_equal(
        tiny_encoder.encode_queries(TEXTS, prompt=loaded), tiny_encoder.encode_queries(TEXTS, prompt=mine)
    )


def test_prompt_files_from_before_there_were_two_kinds(tmp_path: Path) -> None:
    metadata = {"task": "null", "demonstrations": '[["q", "p"]]', "encoder": "f"}
    save_file({"vectors": np.ones((2, 3), np.float32)}, tmp_path / "p.safetensors", metadata=metadata)
    assert Prompt.load(tmp_path / "p.safetensors").kind == "soft"
    save_file({"vectors": np.ones((2, 3), np.float32)}, tmp_path / "p.safetensors", metadata={**metadata, "kind": "x"})
    with pytest.raises(UserError, match=r"is not a prompt that epic-search saved: .* unknown kind 'x'"):
        Prompt.load(tmp_path / "p.safetensors")


def test_texts_that_do_not_fit_are_refused_and_never_left_out(text_encoder: Encoder) -> None:
    many = [Demonstration(query="q" * 30, passage="p" * 30)] * 5
    assert len(text_encoder.layout(text_encoder.prompt(demonstrations=many))) == 3 + 5 * (30 + 30 + 6 + 10 + 1) + 6 + 10
    with pytest.raises(
        UserError,
        match=r"the prompt takes 481 tokens and a query up to 64, together more than the 512 that tiny-text reads; "
        "shorten the task or use fewer than 6 demonstrations",
    ):
        text_encoder.prompt(demonstrations=[*many, many[0]])
    assert len(text_encoder.layout(text_encoder.prompt(demonstrations=[*many, many[0]], kind="soft"))) < 200
    long = Demonstration(query="q", passage="p" * 65)
    with pytest.raises(
        UserError, match="the passage of demonstration 1 takes 65 tokens, and tiny-text reads 64 of a text"
    ):
        text_encoder.prompt(demonstrations=[long])


def test_a_loaded_prompt_is_checked_by_the_encoder_that_uses_it(text_encoder: Encoder, tmp_path: Path) -> None:
    """Another encoder may read less than the one that made the prompt."""
    prompt = replace(
        text_encoder.prompt(), demonstrations=(Demonstration(query="q" * 60, passage="p" * 60),) * 4, kind="text"
    )
    with pytest.raises(UserError, match="together more than the 512"):
        text_encoder.encode_queries(["q"], prompt=prompt)


def test_an_unknown_kind_is_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(UserError, match="kind 'texts' is not one of soft, text"):
        tiny_encoder.prompt(kind="texts")  # type: ignore[arg-type]


def test_the_kind_is_part_of_an_encoder_and_soft_ones_stay_what_they_were(
    tiny_encoder_folder: Path, tiny_text_folder: Path
) -> None:
    soft, text = find(str(tiny_encoder_folder)), find(str(tiny_text_folder))
    assert (soft.config.demonstrations, text.config.demonstrations) == ("soft", "text")
    assert soft.fingerprint() != text.fingerprint()
    assert "demonstrations" not in soft.config.model_dump(), "in no fingerprint of before"
    assert '"demonstrations": "text"' in (tiny_text_folder / "encoder.json").read_text()
