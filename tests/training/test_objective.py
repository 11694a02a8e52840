"""What a training step computes: who may be a negative, who may be shown, and where gradients go."""

import dataclasses

import numpy as np
import pytest
import torch

from epic_search.encoder import Encoder
from epic_search.training.objective import (
    demonstrated,
    distill,
    draw_demonstrations,
    embed,
    epic_losses,
    info_nce,
    prepare,
    teach,
)
from epic_search.training.pairs import Pair, PairSource, TrainBatch, bare
from epic_search.training.recipe import Objective

PAIRS = [Pair("find it", f"query number {i}", f"passage number {i}", (f"wrong {i}",)) for i in range(8)]


def batch_of(pairs: list[Pair], *, dropout: float = 0.0) -> TrainBatch:
    source = PairSource("test", pairs, weight=1, negatives=1, instruction_dropout=dropout)
    return source.batch(np.arange(len(pairs)), np.random.default_rng(0))


def losses(encoder: Encoder, batch: TrainBatch, *, budget: int = 4096, **settings: object):
    objective = Objective.model_validate(settings)
    passes = prepare(encoder, batch, objective, rng=np.random.default_rng(1), max_length=64)
    return epic_losses(encoder, passes, objective, token_budget=budget)


def test_the_second_pass_trains_projectors_lora_and_first_pass(encoder: Encoder) -> None:
    """With only the second loss left, every trained part gets a gradient: through the slots as well."""
    result = losses(encoder, batch_of(PAIRS))
    without = losses(encoder, batch_of(PAIRS), demonstrations=0)
    (result.total - without.total).backward()
    for name, parameter in encoder.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_stop_gradient_cuts_the_way_through_demonstrations(encoder: Encoder) -> None:
    def gradient(stop: bool) -> torch.Tensor:
        encoder.model.zero_grad()
        losses(encoder, batch_of(PAIRS), stop_gradient=stop).total.backward()
        return next(p.grad.clone() for n, p in encoder.model.named_parameters() if "lora_A" in n)

    assert not torch.allclose(gradient(True), gradient(False), rtol=1e-3)


def test_losses_do_not_depend_on_how_rows_are_grouped(encoder: Encoder) -> None:
    whole, parts = (losses(encoder, batch_of(PAIRS), budget=budget) for budget in (4096, 64))
    assert whole.total.item() == pytest.approx(parts.total.item(), abs=1e-4)


def test_training_vectors_are_the_vectors_users_get(encoder: Encoder) -> None:
    texts = [pair.positive for pair in PAIRS]
    rows = [encoder.template.passage.row(ids) for ids in encoder.token_ids(texts)]
    trained = embed(encoder, rows, encoder.context(texts), token_budget=100)
    np.testing.assert_allclose(trained.detach().numpy(), encoder.encode_passages(texts), atol=1e-5)


def test_near_duplicates_are_no_negatives() -> None:
    pairs = [
        Pair(None, "what is a cat", "A cat is an animal."),
        Pair(None, "cat?", "a cat is an ANIMAL"),
        Pair(None, "dog", "What is a cat?"),
    ]
    allowed_QP = batch_of(pairs).allowed_QP
    assert allowed_QP.tolist() == [[True, False, False], [False, True, True], [True, True, True]]


def test_demonstrations_come_from_the_group_and_never_give_the_answer_away() -> None:
    pairs = [
        *PAIRS,
        Pair("find it", "same answer", "passage number 0"),
        Pair("find it", "query number 1", "other"),
        Pair("find it", "Passage, number 2", "turned round"),
    ]
    batch = batch_of(pairs, dropout=0.5)
    assert 0 < batch.group_Q.sum() < len(pairs)
    assert [task is None for task in batch.tasks] == (batch.group_Q == 1).tolist()
    seen = set()
    for seed in range(50):
        for i, shown in enumerate(draw_demonstrations(batch, 5, np.random.default_rng(seed))):
            seen.add(len(shown))
            assert len(set(shown.tolist())) == len(shown)
            for j in shown:
                assert j != i and batch.group_Q[j] == batch.group_Q[i]
                mine = {bare(batch.queries[i]), bare(batch.passages[i])}
                assert mine.isdisjoint({bare(batch.queries[j]), bare(batch.passages[j])})
            hidden_P = demonstrated(batch, [shown] * len(pairs))[i]
            assert {bare(batch.passages[j]) for j in np.flatnonzero(hidden_P)} == {
                bare(batch.passages[j]) for j in shown
            }
    assert seen == {0, 1, 2, 3, 4, 5}


def test_a_query_whose_relation_is_untold_always_gets_a_demonstration() -> None:
    batch = dataclasses.replace(batch_of(PAIRS), untold_Q=np.arange(8) % 2 == 0)
    for seed in range(20):
        shown = draw_demonstrations(batch, 3, np.random.default_rng(seed))
        assert min(len(d) for d in shown[::2]) >= 1
    assert any(len(d) == 0 for d in shown[1::2])


def test_info_nce_leaves_out_what_is_not_allowed_and_what_beats_the_positive_by_the_margin() -> None:
    scores_QP = torch.tensor([[0.5, 0.9, 0.55], [0.1, 0.6, 0.2]])
    allowed_QP = torch.tensor([[True, True, True], [False, True, True]])
    objective = Objective(temperature=0.1, false_negative_margin=0.1)
    loss, accuracy = info_nce(scores_QP, allowed_QP, torch.tensor([True, True]), objective)
    first = -np.log(np.exp(5) / (np.exp(5) + np.exp(5.5)))
    second = -np.log(np.exp(6) / (np.exp(6) + np.exp(2)))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-4)
    assert accuracy == 0.5
    told, _ = info_nce(scores_QP, allowed_QP, torch.tensor([False, True]), objective)
    assert told.item() == pytest.approx(second, rel=1e-4)
    nobody, _ = info_nce(scores_QP, allowed_QP, torch.tensor([False, False]), objective)
    assert nobody.item() == 0


def test_distillation_is_zero_for_likenesses_that_agree_and_grows_with_distance() -> None:
    objective = Objective(distill_weight=1.0, geometry_weight=10.0)
    student_NE = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.manual_seed(0)), dim=1)
    turned_NT = torch.nn.functional.pad(student_NE.flip(1), (0, 3))  # other axes, another width, the same likenesses
    assert distill(student_NE, turned_NT, objective).item() == pytest.approx(0.0, abs=1e-5)
    noise = torch.randn(6, 8, generator=torch.manual_seed(1))
    near, far = (
        distill(student_NE, torch.nn.functional.normalize(student_NE + w * noise, dim=1), objective)
        for w in (0.05, 0.3)
    )
    assert 0.0 < near.item() < far.item()


def test_a_teacher_reads_queries_under_their_own_instructions() -> None:
    class Recorder:
        def encode_queries(self, texts, *, task, progress=None):
            return np.array([[len(text), len(task or "")] for text in texts], dtype=np.float32)

        def encode_passages(self, texts, *, progress=None):
            return np.array([[-len(text), 0] for text in texts], dtype=np.float32)

    taught = teach(Recorder(), ["a", "bb", "ccc"], ["long task", None, "long task"], ["dddd"])
    assert taught.tolist() == [[1, 9], [2, 0], [3, 9], [-4, 0]]


def test_everybody_reads_the_same_part_of_a_text(encoder: Encoder) -> None:
    """What lies beyond `max_length` tokens changes neither the decoder's rows nor what the Contextual encoder says."""

    def made(tail: str):
        pairs = [Pair("find it", f"query {i}{tail}", f"passage {i}{tail}") for i in range(3)]
        objective = Objective(demonstrations=0, distill_weight=1.0)
        return prepare(encoder, batch_of(pairs), objective, rng=np.random.default_rng(0), max_length=7)

    short, long = made(""), made(" and more")
    assert [row.ids for row in long.query_rows] == [row.ids for row in short.query_rows]
    for one, other in ((short.context_query, long.context_query), (short.teacher_NT, long.teacher_NT)):
        assert one is not None and other is not None
        torch.testing.assert_close(one[:3], other[:3])


def test_weights_of_the_two_contrasts(encoder: Encoder) -> None:
    both, first, second = (
        losses(encoder, batch_of(PAIRS), contrast_without=a, contrast_with=b).total.item()
        for a, b in ((1.0, 1.0), (1.0, 0.0), (0.0, 2.0))
    )
    assert both == pytest.approx(first + second / 2, rel=1e-5)
