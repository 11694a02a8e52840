"""Demonstrations that name classes: what tells the classes apart grows, and nothing else is moved."""

from pathlib import Path

import numpy as np
import pytest

from epic_search.encoder import Demonstration, Encoder, Prompt
from epic_search.encoder.emphasis import PAIRS, SPAN, Emphasis
from epic_search.errors import UserError

TEXTS = ["a text", "another one", "and a third, longer than the others"]
NAMED = [
    Demonstration("oh no", "anger", names_class=True),
    Demonstration("hooray", "joy", names_class=True),
    Demonstration("not again", "anger", names_class=True),
]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_it_is_the_formula(random: np.random.Generator) -> None:
    names_KE, vectors_VE = unit(random.standard_normal((4, 12))), unit(random.standard_normal((5, 12)))
    names_KE[3] = names_KE[0]
    texts_KE = unit(names_KE + 0.2 * random.standard_normal((4, 12)))
    cross_EE = np.cov(texts_KE, names_KE, rowvar=False)[:12, 12:]
    cross_EE = cross_EE + cross_EE.T
    others_CE = unit(random.standard_normal((3, 12)))
    for told in (None, others_CE):
        all_CE = names_KE if told is None else np.concatenate([names_KE, told])
        apart_CE = all_CE - all_CE.mean(axis=0)
        matrix_EE = SPAN * np.linalg.pinv(apart_CE) @ apart_CE + PAIRS * cross_EE / np.linalg.norm(cross_EE, 2)
        changed_VE = Emphasis(texts_KE, names_KE, told)(vectors_VE)
        np.testing.assert_allclose(changed_VE, unit(vectors_VE + vectors_VE @ matrix_EE), atol=1e-10)


def test_texts_of_two_classes_move_apart_and_what_is_of_none_stays(random: np.random.Generator) -> None:
    anger_E, joy_E, topic_E, other_E = np.linalg.qr(random.standard_normal((12, 4)))[0].T
    angry_E, happy_E = unit(topic_E + 0.3 * anger_E), unit(topic_E + 0.3 * joy_E)
    emphasis = Emphasis(np.stack([angry_E, happy_E]), np.stack([anger_E, joy_E]))
    first_E, second_E, third_E = emphasis(np.stack([angry_E, happy_E, other_E]))
    assert first_E @ second_E < angry_E @ happy_E - 0.03
    np.testing.assert_allclose(third_E, other_E, atol=1e-10)


def test_wrong_pairs_change_nothing(random: np.random.Generator) -> None:
    names_KE = np.linalg.qr(random.standard_normal((40, 4)))[0].T
    texts_KE = unit(0.5 * names_KE + 0.2 * random.standard_normal((4, 40)))
    vectors_NE = unit(0.4 * names_KE.repeat(25, axis=0) + 0.2 * random.standard_normal((100, 40)))
    same_NN = np.kron(np.eye(4), np.ones((25, 25))).astype(bool)

    def gap(vectors_NE: np.ndarray) -> float:
        likeness_NN = vectors_NE @ vectors_NE.T
        return float(likeness_NN[same_NN].mean() - likeness_NN[~same_NN].mean())

    assert gap(Emphasis(texts_KE, names_KE)(vectors_NE)) > gap(vectors_NE) + 0.1
    shuffled = Emphasis(np.roll(texts_KE, 1, axis=0), names_KE)
    np.testing.assert_allclose(shuffled(vectors_NE), vectors_NE, atol=1e-10)


def test_an_encoder_applies_it_to_its_queries(tiny_encoder: Encoder) -> None:
    named = tiny_encoder.prompt(task="find", demonstrations=NAMED)
    plain = tiny_encoder.prompt(task="find")
    emphasis = Emphasis.of(named)
    assert emphasis is not None and Emphasis.of(plain) is None
    before_NE = tiny_encoder.encode_queries(TEXTS, prompt=plain)
    np.testing.assert_allclose(tiny_encoder.encode_queries(TEXTS, prompt=named), emphasis(before_NE), atol=1e-5)
    both_NE = tiny_encoder.encode_queries([TEXTS[0]] * 2, prompts=[named, plain])
    np.testing.assert_allclose(both_NE, [emphasis(before_NE[:1])[0], before_NE[0]], atol=1e-5)


def test_names_take_no_place_in_the_prompt_and_other_demonstrations_keep_theirs(tiny_encoder: Encoder) -> None:
    answered = Demonstration("a question", "its answer")
    many = [Demonstration(f"text {n}", f"class {n}", names_class=True) for n in range(500)]
    both = tiny_encoder.prompt(demonstrations=[*many[:250], answered, *many[250:]])
    alone = tiny_encoder.prompt(demonstrations=[answered])
    assert tiny_encoder.layout(both) == tiny_encoder.layout(alone)
    np.testing.assert_allclose(both.slots_SE, alone.vectors_SE, atol=1e-5)
    emphasis = Emphasis.of(both)
    assert emphasis is not None
    before_NE = tiny_encoder.encode_queries(TEXTS, prompt=alone)
    np.testing.assert_allclose(tiny_encoder.encode_queries(TEXTS, prompt=both), emphasis(before_NE), atol=1e-4)


def test_classes_without_a_text(tiny_encoder: Encoder, random: np.random.Generator) -> None:
    alone = [Demonstration("", name, names_class=True) for name in ("fear", "love")]
    prompt = tiny_encoder.prompt(task="find", demonstrations=[*NAMED, *alone])
    assert tiny_encoder.layout(prompt) == tiny_encoder.layout(tiny_encoder.prompt(task="find"))
    texts_KE, names_KE = prompt.vectors_SE.reshape(5, 2, -1).swapaxes(0, 1)
    assert not texts_KE[3:].any()
    expected, found = Emphasis(texts_KE[:3], names_KE[:3], names_KE[3:]), Emphasis.of(prompt)
    vectors_VE = unit(random.standard_normal((5, tiny_encoder.dim)))
    assert found is not None
    np.testing.assert_allclose(found(vectors_VE), expected(vectors_VE), atol=1e-10)
    # What tells the others apart counts for more, too.
    other_E = unit(names_KE[3] - names_KE[4])
    few = Emphasis(texts_KE[:3], names_KE[:3])
    vector_E = unit(other_E + vectors_VE[0])
    assert found(vector_E[None])[0] @ other_E > few(vector_E[None])[0] @ other_E + 0.02
    both = [tiny_encoder.prompt(demonstrations=shown, kind="text") for shown in ([*NAMED, *alone], [alone[0], *NAMED])]
    assert tiny_encoder.layout(both[0]) == tiny_encoder.layout(both[1]), "as a text it never stands in the prompt"
    with pytest.raises(UserError, match="the passage of demonstration 1 is empty"):
        tiny_encoder.prompt(demonstrations=[Demonstration("", "", names_class=True)])
    with pytest.raises(UserError, match="the query of demonstration 1 is empty"):
        tiny_encoder.prompt(demonstrations=[Demonstration("", "an answer")])


@pytest.mark.parametrize("kept", [slice(0, 1), slice(0, 3, 2)], ids=["one demonstration", "two of one class"])
def test_one_class_tells_nothing_apart(kept: slice, tiny_encoder: Encoder) -> None:
    assert Emphasis.of(tiny_encoder.prompt(demonstrations=NAMED[kept])) is None


def test_texts_in_place_of_vectors_have_none(tiny_encoder: Encoder) -> None:
    assert Emphasis.of(tiny_encoder.prompt(demonstrations=NAMED, kind="text")) is None


def test_a_prompt_keeps_it(tiny_encoder: Encoder, tmp_path: Path) -> None:
    alone = Demonstration("", "fear", names_class=True)
    prompt = tiny_encoder.prompt(demonstrations=[*NAMED, Demonstration("a question", "its answer"), alone])
    prompt.save(tmp_path / "prompt.safetensors")
    assert Prompt.load(tmp_path / "prompt.safetensors").demonstrations == prompt.demonstrations
