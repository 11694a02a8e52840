"""Vectors cut to fewer dimensions: prefixes at unit length, of both halves, of an encoder of their own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.checkpoint import find
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.export import export
from epic_search.encoder.matryoshka import halves, join, truncate
from epic_search.errors import UserError

TEXTS = ["one text", "another", "and a third, longer than the two before"]
DEMONSTRATIONS = [Demonstration(query="a", passage="b"), Demonstration(query="c", passage="d")]


@pytest.fixture(scope="module")
def folder(tiny_config: EncoderConfig, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder, as a run for 16 and 32 of its 64 dimensions has it before the first step."""
    path = tmp_path_factory.mktemp("matryoshka") / "encoder"
    config = tiny_config.model_copy(update={"matryoshka": [16, 32]})
    Encoder.create(config, start=tiny_encoder_folder, device="cpu").save(path)
    return path


def load(folder: Path, dim: int | None = None) -> Encoder:
    return Encoder.load(folder, device="cpu", dtype="float32", dim=dim)


def prompted(encoder: Encoder) -> np.ndarray:
    return encoder.encode_queries(TEXTS, prompt=encoder.prompt(task="find", demonstrations=DEMONSTRATIONS))


def cut(vectors_NE: np.ndarray, dim: int) -> np.ndarray:
    return vectors_NE[:, :dim] / np.linalg.norm(vectors_NE[:, :dim], axis=1, keepdims=True)


def test_halves_are_what_was_joined(tiny_config: EncoderConfig) -> None:
    context_ND, last_ND = torch.randn(2, 5, 4)
    in_turn = tiny_config.model_copy(update={"matryoshka": [2]})
    for config in (tiny_config, in_turn):
        for mine, theirs in zip(halves(join(context_ND, last_ND, config), config), (context_ND, last_ND), strict=True):
            torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(join(context_ND, last_ND, tiny_config)[:, :4], context_ND, msg="as it always was")
    prefix_NE = join(context_ND, last_ND, in_turn)[:, :4]
    torch.testing.assert_close(prefix_NE[:, 0::2], context_ND[:, :2])
    torch.testing.assert_close(prefix_NE[:, 1::2], last_ND[:, :2])


def test_training_for_it_changes_the_order_and_nothing_else(folder: Path, tiny_encoder: Encoder) -> None:
    encoder = load(folder)
    for mine, theirs in (
        (encoder.encode_passages(TEXTS), tiny_encoder.encode_passages(TEXTS)),
        (prompted(encoder), prompted(tiny_encoder)),
    ):
        in_order = np.concatenate([mine[:, 0::2], mine[:, 1::2]], axis=1)
        np.testing.assert_allclose(in_order, theirs, atol=1e-5)
    again = Encoder.create(encoder.config, start=folder, device="cpu")
    np.testing.assert_allclose(prompted(again), prompted(encoder), atol=1e-5)


@pytest.mark.parametrize("dim", [16, 32])
def test_vectors_are_prefixes_at_unit_length(folder: Path, dim: int) -> None:
    whole, small = load(folder), load(folder, dim)
    assert small.dim == dim
    np.testing.assert_allclose(small.encode_passages(TEXTS), cut(whole.encode_passages(TEXTS), dim), atol=1e-6)
    np.testing.assert_allclose(prompted(small), cut(prompted(whole), dim), atol=1e-6)
    tensor_NE = torch.from_numpy(whole.encode_passages(TEXTS))
    np.testing.assert_allclose(truncate(tensor_NE, dim).numpy(), small.encode_passages(TEXTS), atol=1e-6)


def test_each_width_is_an_encoder_of_its_own(folder: Path) -> None:
    whole = find(str(folder))
    prints = {dim: whole.truncated(dim).fingerprint() for dim in (None, 16, 32, 64)}
    assert prints[64] == prints[None] and len(set(prints.values())) == 3
    small, other = load(folder, 16), load(folder, 32)
    assert small.fingerprint == prints[16]
    with pytest.raises(UserError, match="make the prompt anew"):
        small.encode_queries(TEXTS, prompt=other.prompt(demonstrations=DEMONSTRATIONS))


@pytest.mark.parametrize("dim", [8, 65])
def test_a_width_that_was_not_trained(folder: Path, tiny_encoder_folder: Path, dim: int) -> None:
    with pytest.raises(UserError, match=f"trained for vectors of 16 or 32 or 64 dimensions, and {dim} were asked for"):
        load(folder, dim)
    with pytest.raises(UserError, match=f"trained for vectors of 64 dimensions, and {dim} were asked for"):
        load(tiny_encoder_folder, dim)


def test_widths_to_train_are_smaller_than_the_whole(tiny_config: EncoderConfig) -> None:
    with pytest.raises(UserError, match=r"objective\.matryoshka names 64 dimensions, and vectors have 64"):
        Encoder.create(tiny_config.model_copy(update={"matryoshka": [8, 64]}), device="cpu")


def test_the_widths_stand_in_the_checkpoint(folder: Path, tiny_encoder_folder: Path) -> None:
    fields = json.loads((tiny_encoder_folder / "encoder.json").read_text())
    assert not {"matryoshka", "dim"} & fields.keys()
    assert json.loads((folder / "encoder.json").read_text())["matryoshka"] == [16, 32]


def test_others_can_cut_the_vectors_of_an_export(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    made = export(folder, out=tmp_path / "st", format="sentence-transformers").folder
    assert "first 16 or 32 dimensions" in (made / "README.md").read_text()
    theirs = SentenceTransformer(str(made), device="cpu", trust_remote_code=True, truncate_dim=16)
    found = theirs.encode_document(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(found, load(folder, 16).encode_passages(TEXTS), atol=1e-5)


def test_whole_vectors_of_a_cut_encoder_are_those_that_its_prompts_hold(folder: Path) -> None:
    whole, small = load(folder), load(folder, 16)
    np.testing.assert_allclose(small.encode_passages(TEXTS, whole=True), whole.encode_passages(TEXTS), atol=1e-6)
    plain = small.prompt(task="find")
    shown = small.prompt(task="find", demonstrations=DEMONSTRATIONS)
    np.testing.assert_array_equal(small.encode_queries(["a", "c"], prompt=plain, whole=True), shown.vectors_SE[::2])
