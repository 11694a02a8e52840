"""The encoder's invariants: a text's vector depends on nothing but the text, the prompt and the encoder."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError

TEXTS = [
    "short",
    "a text of middling length, with some words in it",
    "é ü 漢字 🙂",
    "the longest of these texts, which is cut because it goes on for more bytes than the tiny encoder reads",
    "x",
    "another short one",
]
DEMONSTRATIONS = [
    Demonstration(query="red", passage="a colour"),
    Demonstration(query="seven", passage="a number"),
]


def variants(tiny_config: EncoderConfig) -> dict[str, EncoderConfig]:
    plain = tiny_config.model_dump(exclude={"contextual"})
    early = {
        **tiny_config.model_dump(),
        "contextual": {**tiny_config.contextual.model_dump(), "position": "before_prefix"},
    }
    return {
        "contextual": tiny_config,
        "contextual before the prefix": EncoderConfig.model_validate(early),
        "no contextual, last": EncoderConfig.model_validate({**plain, "pooling": "last"}),
        "no contextual, mean, linear": EncoderConfig.model_validate(
            {**plain, "pooling": "mean", "soft_tokens": {"projector": "linear"}}
        ),
        "rescale": EncoderConfig.model_validate({**plain, "pooling": "last", "soft_tokens": {"projector": "rescale"}}),
        "identity": EncoderConfig.model_validate(
            {**plain, "pooling": "last", "soft_tokens": {"projector": "identity"}}
        ),
    }


VARIANTS = [
    "contextual",
    "contextual before the prefix",
    "no contextual, last",
    "no contextual, mean, linear",
    "rescale",
    "identity",
]


def saved(config: EncoderConfig, folder: Path) -> Path:
    torch.manual_seed(3)
    encoder = Encoder.create(config, device="cpu")
    for name, parameter in encoder.model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder.save(folder)
    return folder


def cosines(a_NE: np.ndarray, b_NE: np.ndarray) -> np.ndarray:
    assert a_NE.shape == b_NE.shape and a_NE.dtype == b_NE.dtype == np.float32
    return (a_NE.astype(np.float64) * b_NE).sum(axis=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
@pytest.mark.parametrize("demonstrations", [[], DEMONSTRATIONS], ids=["k=0", "k=2"])
def test_vector_does_not_depend_on_neighbours_or_layout(
    tiny_config: EncoderConfig,
    tmp_path: Path,
    variant: str,
    dtype: str,
    least: float,
    demonstrations: list[Demonstration],
) -> None:
    encoder = Encoder.load(saved(variants(tiny_config)[variant], tmp_path / "e"), device="cpu", dtype=dtype)
    assert encoder.model.layout == "packed"
    prompt = encoder.prompt(task="name the kind", demonstrations=demonstrations)

    def encode(texts: list[str]) -> np.ndarray:
        return np.concatenate([encoder.encode_queries(texts, prompt=prompt), encoder.encode_passages(texts)])

    together = encode(TEXTS)
    alone = (
        np.concatenate([encode([text]) for text in TEXTS])
        .reshape(len(TEXTS), 2, -1)
        .swapaxes(0, 1)
        .reshape(together.shape)
    )
    backwards = encode(TEXTS[::-1]).reshape(2, len(TEXTS), -1)[:, ::-1].reshape(together.shape)
    encoder.model.use_layout("padded")
    padded = encode(TEXTS)
    assert cosines(together, alone).min() >= least
    assert cosines(together, backwards).min() >= least
    assert cosines(together, padded).min() >= least
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3, "different texts must get different vectors"


def test_reloaded_encoder_gives_the_same_vectors_as_the_trained_one(tiny_config: EncoderConfig, tmp_path: Path) -> None:
    """LoRA layers apart (peft, as trained) and merged (by our own product) are the same encoder."""
    torch.manual_seed(4)
    trained = Encoder.create(tiny_config, device="cpu")
    for parameter in trained.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    trained.save(tmp_path / "e")
    loaded = Encoder.load(tmp_path / "e", device="cpu", dtype="float32")
    resumed = Encoder.create(tiny_config, start=tmp_path / "e", device="cpu")
    prompts = [encoder.prompt(task="t", demonstrations=DEMONSTRATIONS) for encoder in (trained, loaded, resumed)]
    vectors = [e.encode_queries(TEXTS, prompt=p) for e, p in zip((trained, loaded, resumed), prompts, strict=True)]
    assert cosines(vectors[0], vectors[1]).min() >= 0.99999
    assert cosines(vectors[0], vectors[2]).min() >= 0.99999


def test_demonstrations_and_tasks_change_queries_but_never_passages(tiny_encoder: Encoder) -> None:
    vectors = {
        "none": tiny_encoder.encode_queries(TEXTS),
        "task": tiny_encoder.encode_queries(TEXTS, prompt=tiny_encoder.prompt(task="name the kind")),
        "true": tiny_encoder.encode_queries(
            TEXTS, prompt=tiny_encoder.prompt(task="name the kind", demonstrations=DEMONSTRATIONS)
        ),
        "passage": tiny_encoder.encode_passages(TEXTS),
    }
    names = list(vectors)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert cosines(vectors[a], vectors[b]).max() < 0.9999, (a, b)


def test_random_demonstration_vectors_give_another_result_than_true_ones(tiny_encoder: Encoder) -> None:
    true = tiny_encoder.prompt(demonstrations=DEMONSTRATIONS)
    random = np.random.default_rng(0).standard_normal(true.vectors_SE.shape).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    other = dataclasses.replace(true, vectors_SE=random)
    assert (
        cosines(tiny_encoder.encode_queries(TEXTS, prompt=true), tiny_encoder.encode_queries(TEXTS, prompt=other)).max()
        < 0.9999
    )


def test_demonstration_vectors_are_the_encoders_own(tiny_encoder: Encoder) -> None:
    prompt = tiny_encoder.prompt(task="t", demonstrations=DEMONSTRATIONS)
    task_only = tiny_encoder.prompt(task="t")
    np.testing.assert_allclose(
        prompt.vectors_SE[0::2],
        tiny_encoder.encode_queries([d.query for d in DEMONSTRATIONS], prompt=task_only),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        prompt.vectors_SE[1::2], tiny_encoder.encode_passages([d.passage for d in DEMONSTRATIONS]), atol=1e-6
    )


def test_no_texts_give_no_vectors(tiny_encoder: Encoder) -> None:
    assert tiny_encoder.encode_passages([]).shape == (0, tiny_encoder.dim)


def test_progress_adds_up(tiny_encoder: Encoder) -> None:
    done: list[int] = []
    tiny_encoder.encode_passages(TEXTS, progress=done.append)
    assert sum(done) == len(TEXTS)


def test_special_tokens_in_a_text_are_plain_text(tiny_encoder: Encoder) -> None:
    ids = tiny_encoder.token_ids(["a<eos>b"])[0]
    assert 257 not in ids and len(ids) == len("a<eos>b")


@pytest.mark.parametrize("title", ["", "a title"])
def test_split_covers_the_text_in_pieces_that_fit(tiny_encoder: Encoder, title: str) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    [pieces] = tiny_encoder.split([text], titles=[title])
    assert len(pieces) > 3
    read = [f"{title}\n{piece}" if title else piece for piece in pieces]
    assert 50 < max(len(ids) for ids in tiny_encoder.token_ids(read, max_length=1000)) <= 64
    assert {word for piece in pieces for word in piece.split()} >= set(text.split())
    assert tiny_encoder.split(["short"]) == [["short"]]


def test_a_prompt_that_does_not_fit_names_both_lengths(tiny_encoder: Encoder) -> None:
    with pytest.raises(UserError, match=r"takes \d+ tokens and a query up to 64, together more than the 512"):
        tiny_encoder.prompt(task="long " * 100)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Demonstration(query="q" * 65, passage="p"), "the query of demonstration 2 takes 65 tokens, and tiny reads 64"),
        (Demonstration(query="q", passage="p" * 70), "the passage of demonstration 2 takes 70 tokens"),
        (Demonstration(query=" ", passage="p"), "the query of demonstration 2 is empty"),
    ],
)
def test_no_demonstration_is_cut(tiny_encoder: Encoder, pair: Demonstration, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_encoder.prompt(demonstrations=[DEMONSTRATIONS[0], pair])


def test_another_encoders_prompt_is_refused(tiny_encoder: Encoder, tiny_config: EncoderConfig) -> None:
    other = Encoder.create(tiny_config, device="cpu")
    with pytest.raises(UserError, match="make the prompt anew"):
        tiny_encoder.encode_queries(["q"], prompt=other.prompt(demonstrations=DEMONSTRATIONS))


def test_a_vector_that_is_not_finite_is_an_error_that_names_the_text(tiny_encoder_folder: Path) -> None:
    encoder = Encoder.load(tiny_encoder_folder, device="cpu", dtype="float32")
    with torch.no_grad():
        encoder.model.backbone.get_input_embeddings().weight[ord("z") - 33] = float("nan")
    assert encoder.encode_passages(["abc"]).shape == (1, 64)
    with pytest.raises(UserError, match="not finite from the text 'a z'"):
        encoder.encode_passages(["abc", "a z"])


def test_mean_pooling_takes_the_texts_own_tokens(tiny_config: EncoderConfig, tmp_path: Path) -> None:
    encoder = Encoder.load(saved(variants(tiny_config)["no contextual, mean, linear"], tmp_path / "e"), dtype="float32")
    row = encoder.template.query(task="a task", demonstrations=0).row(encoder.token_ids(["abc"])[0])
    assert row.stop - row.start == 3
    vector_E = encoder.encode_queries(["abc"], prompt=encoder.prompt(task="a task"))[0]
    encoder.model.use_layout("padded")
    hidden = encoder.model.backbone(torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden[row.start : row.stop].mean(dim=0), dim=0)
    np.testing.assert_allclose(vector_E, expected.numpy(), atol=1e-5)
    assert np.isfinite(encoder.encode_passages([""])).all()


def test_gradients_reach_every_trained_part_through_demonstrations(tiny_config: EncoderConfig) -> None:
    torch.manual_seed(5)
    encoder = Encoder.create(tiny_config, device="cpu")
    for name, parameter in encoder.model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    row = encoder.template.query(task="t", demonstrations=1).row([1, 2, 3])
    soft = torch.nn.functional.normalize(torch.randn(2, encoder.dim), dim=-1)
    encoder.model([row], context_BC=encoder.context(["abc"]), soft_SE=soft)[0, 0].backward()
    for name, parameter in encoder.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not any(parameter.requires_grad for parameter in encoder.model.contextual.parameters())


def test_one_text_is_not_several(tiny_encoder: Encoder) -> None:
    for encode in (tiny_encoder.encode_queries, tiny_encoder.encode_passages):
        with pytest.raises(UserError, match="'abc' is one text where several are expected; give it in a list"):
            encode("abc")
        with pytest.raises(UserError, match="number 2 of the texts is no text but None"):
            encode(["a", None])  # type: ignore[list-item]
    with pytest.raises(UserError, match="number 1 of the texts is no text but 7"):
        tiny_encoder.prompt(demonstrations=[Demonstration(7, "seven")])  # type: ignore[arg-type]
