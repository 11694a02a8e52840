"""Training with demonstrations as texts: which rows there are, what the loss is made of, and whom they teach."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError
from epic_search.training.objective import Losses, Passes, embed_texts, epic_losses, info_nce, prepare
from epic_search.training.pairs import Pair, PairSource, TrainBatch
from epic_search.training.recipe import Objective, Recipe
from epic_search.training.trainer import StepReport, train

PAIRS = [Pair("find it", f"query {i}", f"passage {i}", (f"wrong {i}",)) for i in range(8)]


@pytest.fixture
def batch() -> TrainBatch:
    source = PairSource("test", PAIRS, weight=1, negatives=1, instruction_dropout=0.0)
    return source.batch(np.arange(len(PAIRS)), np.random.default_rng(0))


def passes_of(encoder: Encoder, batch: TrainBatch, objective: Objective, *, max_length: int = 32) -> Passes:
    return prepare(encoder, batch, objective, rng=np.random.default_rng(1), max_length=max_length)


def losses_of(encoder: Encoder, batch: TrainBatch, **settings: object) -> tuple[Losses, Passes, Objective]:
    objective = Objective.model_validate({"demonstrations": 3, **settings})
    passes = passes_of(encoder, batch, objective)
    return epic_losses(encoder, passes, objective, token_budget=4096), passes, objective


def under_texts(encoder: Encoder, passes: Passes) -> torch.Tensor:
    """(Q, E) what users get for each query under a text prompt of its demonstrations."""
    batch = passes.batch
    rows = []
    for query, task, shown in zip(batch.queries, batch.tasks, passes.shown, strict=True):
        demonstrations = [Demonstration(query=batch.queries[j], passage=batch.passages[j]) for j in shown]
        prompt = encoder.prompt(task=task, demonstrations=demonstrations, kind="text")
        rows.append(encoder.encode_queries([query], prompt=prompt)[0])
    return torch.from_numpy(np.stack(rows))


def test_the_only_pass_is_over_queries_with_their_texts(text_encoder: Encoder, batch: TrainBatch) -> None:
    """bge-en-icl: one pass over the queries, no demonstrations among the draws; the loss is that of users' vectors."""
    losses, passes, objective = losses_of(text_encoder, batch, contrast_without=0)
    assert passes.query_rows == [] and losses.without is None and losses.accuracy_without is None
    assert {len(shown) for shown in passes.shown} == {0, 1, 2, 3}
    queries_QE = under_texts(text_encoder, passes)
    passages_PE = torch.from_numpy(text_encoder.encode_passages(batch.passages))
    expected, _ = info_nce(queries_QE @ passages_PE.T, passes.visible_QP, passes.told_Q, objective)
    assert losses.total.item() == pytest.approx(expected.item(), abs=1e-3)
    assert losses.with_demonstrations == pytest.approx(losses.total.item())
    assert losses.tokens == sum(len(row) for row in passes.demonstrated_rows + passes.passage_rows)


def test_with_both_passes_the_losses_add_up(text_encoder: Encoder, batch: TrainBatch) -> None:
    both, _, _ = losses_of(text_encoder, batch)
    alone, _, _ = losses_of(text_encoder, batch, contrast_without=0)
    without, _, _ = losses_of(text_encoder, batch, demonstrations=0)
    assert both.total.item() == pytest.approx(alone.total.item() + without.total.item(), abs=1e-4)
    assert both.without == pytest.approx(without.total.item()) != both.with_demonstrations


def test_texts_are_drawn_as_slots_are_and_train_no_projector(
    encoder: Encoder, text_encoder: Encoder, batch: TrainBatch
) -> None:
    soft, text = (passes_of(each, batch, Objective(demonstrations=3)) for each in (encoder, text_encoder))
    for one, other in zip(soft.shown, text.shown, strict=True):
        np.testing.assert_array_equal(one, other)
    torch.testing.assert_close(soft.visible_QP, text.visible_QP)
    losses_of(text_encoder, batch, contrast_without=0)[0].total.backward()
    lora = [p for name, p in text_encoder.model.backbone.named_parameters() if p.requires_grad]
    assert lora and all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora)
    assert all(p.grad is None for p in text_encoder.model.soft_tokens.parameters())


def test_soft_demonstrations_without_the_first_loss_still_train_it_through_the_slots(
    encoder: Encoder, batch: TrainBatch
) -> None:
    both, _, _ = losses_of(encoder, batch)
    alone, passes, _ = losses_of(encoder, batch, contrast_without=0)
    assert len(passes.query_rows) == len(PAIRS), "demonstrations are made of their vectors"
    assert alone.total.item() == pytest.approx(alone.with_demonstrations, rel=1e-5)
    assert (alone.without, alone.with_demonstrations) == (both.without, both.with_demonstrations)
    alone.total.backward()
    for name, parameter in encoder.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_texts_that_may_not_fit_are_refused(text_encoder: Encoder, batch: TrainBatch) -> None:
    passes_of(text_encoder, batch, Objective(demonstrations=5), max_length=30)
    with pytest.raises(UserError, match=r"5 demonstrations as texts of 50 tokens takes \d+ tokens, and tiny reads 512"):
        passes_of(text_encoder, batch, Objective(demonstrations=5), max_length=50)


# --- a soft encoder learns from its own text demonstrations


def test_the_teacher_is_the_same_encoder_with_texts(encoder: Encoder, batch: TrainBatch) -> None:
    losses, passes, objective = losses_of(encoder, batch, text_distill_weight=2.0)
    plain, _, _ = losses_of(encoder, batch)
    shown_Q = passes.shown_Q
    assert 0 < len(passes.text_rows) == int(shown_Q.sum()) < len(PAIRS)
    passages_PE = torch.from_numpy(encoder.encode_passages(batch.passages))
    soft_QE = torch.cat([soft_vector(encoder, passes, i) for i in range(len(PAIRS))])
    log_student, log_teacher = (
        F.log_softmax(
            (queries_QE @ passages_PE.T / objective.distill_temperature).masked_fill(~passes.visible_QP, -1e4), dim=1
        )
        for queries_QE in (soft_QE, under_texts(encoder, passes))
    )
    divergence_Q = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    assert losses.text_distillation is not None and plain.text_distillation is None
    assert losses.text_distillation == pytest.approx(divergence_Q[shown_Q].mean().item(), abs=1e-3)
    assert losses.total.item() == pytest.approx(plain.total.item() + 2 * losses.text_distillation, abs=1e-4)


def soft_vector(encoder: Encoder, passes: Passes, i: int) -> torch.Tensor:
    """(1, E) the query under its soft demonstrations, each made under its own task as in training."""
    batch = passes.batch
    prompt = encoder.prompt(
        task=batch.tasks[i],
        demonstrations=[Demonstration(query=batch.queries[j], passage=batch.passages[j]) for j in passes.shown[i]],
    )
    return torch.from_numpy(encoder.encode_queries([batch.queries[i]], prompt=prompt))


def test_steps_on_the_divergence_bring_soft_demonstrations_to_their_texts(encoder: Encoder, batch: TrainBatch) -> None:
    objective = Objective(demonstrations=3, text_distill_weight=1.0)
    passes = passes_of(encoder, batch, objective)
    text_KE = embed_texts(encoder, passes, token_budget=4096)
    assert text_KE is not None and not text_KE.requires_grad
    optimizer = torch.optim.Adam(encoder.model.soft_tokens.parameters(), lr=3e-3)
    seen: list[float] = []
    for _ in range(12):
        total, rest = (
            epic_losses(encoder, passes, each, token_budget=4096)
            for each in (objective, objective.model_copy(update={"text_distill_weight": 0.0}))
        )
        assert total.text_distillation is not None
        seen.append(total.text_distillation)
        optimizer.zero_grad()
        (total.total - rest.total).backward()
        optimizer.step()
    assert seen[-1] < 0.7 * seen[0], seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"demonstrations": 0, "contrast_without": 0}, "no loss is left: contrast_without is 0, and so is"),
        ({"contrast_with": 0, "contrast_without": 0}, "no loss is left"),
        ({"demonstrations": 0, "text_distill_weight": 1.0}, "is about demonstrations, and demonstrations is 0"),
    ],
)
def test_an_objective_that_trains_nothing_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective.model_validate(settings)


# --- runs


@pytest.fixture
def recipe(tiny_config: EncoderConfig, tmp_path: Path) -> Recipe:
    rows = [{"task": "find it", "query": f"q {i}", "positive": f"passage {i}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.model_validate(
        {
            "name": "run",
            "encoder": {**tiny_config.model_dump(), "demonstrations": "text"},
            "data": {"pairs": [{"files": str(tmp_path / "pairs.jsonl")}], "max_length": 24},
            "objective": {"demonstrations": 3, "contrast_without": 0},
            "optimizer": {"steps": 4, "batch_size": 8, "warmup_steps": 1, "precision": "float32"},
            "checkpoint_steps": 2,
        }
    )


def test_a_stopped_run_on_texts_continues_and_its_encoder_reads_texts(recipe: Recipe, tmp_path: Path) -> None:
    whole: list[StepReport] = []
    result = train(recipe, out=tmp_path / "whole", device="cpu", report=whole.append)
    assert all(row.without is None and row.with_demonstrations == pytest.approx(row.loss) for row in whole)
    resumed: list[StepReport] = []

    def stop(row: StepReport) -> None:
        if row.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "stopped", device="cpu", report=stop)
    train(recipe, out=tmp_path / "stopped", device="cpu", resume=True, report=resumed.append)
    assert [row.loss for row in resumed] == [row.loss for row in whole[2:]]
    encoder = Encoder.load(result.encoder, device="cpu", dtype="float32")
    assert encoder.prompt(demonstrations=[Demonstration(query="q", passage="p")]).kind == "text"


def test_texts_do_not_teach_an_encoder_that_is_trained_on_them(recipe: Recipe, tmp_path: Path) -> None:
    changed = recipe.model_copy(update={"objective": Objective(text_distill_weight=1.0)})
    with pytest.raises(UserError, match=r"text_distill_weight teaches soft demonstrations, .* encoder are 'text'"):
        train(changed, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
