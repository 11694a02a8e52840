"""Several processes train as one: with the losses, gradients, weights and files of a single process.

Two real processes, joined by gloo on the CPU, do what is asked of them; a hang is a failure in the end.
"""
# ruff: noqa: F811

import dataclasses
import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError
from epic_search.training import parallel
from epic_search.training.gradcache import cached_gradients
from epic_search.training.objective import epic_losses
from epic_search.training.pairs import Pair, PairSource
from epic_search.training.parallel import World
from epic_search.training.passes import prepare
from epic_search.training.recipe import Objective, Recipe
from epic_search.training.trainer import StepReport, TrainResult, train
from tests.training.test_training import StopError, data, recipe, stop_after  # noqa: F401

PATIENCE = 500.0  # seconds, for a machine that is busy with other things; a few suffice
Together = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    """Calls a function of this file in two processes at once; gives what each of them returned."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:

        def call(work: Callable[..., Any], *arguments: object, **named: object) -> list[Any]:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            tasks = [(rank, port, partial(work, *arguments, **named)) for rank in range(2)]
            return pool.starmap_async(_one_of_two, tasks, chunksize=1).get(timeout=PATIENCE)

        yield call


def _one_of_two(rank: int, port: int, work: Callable[[], Any]) -> Any:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with parallel.group(parallel.meet(), "cpu"):
            return work()
    finally:  # after a failure, so that the next test can begin anew
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Case(NamedTuple):
    """An objective, whether the gradients are cached, and what is trained."""

    objective: dict[str, object]
    cached: bool
    lora: bool = True
    one_demonstration: bool = False
    contextual_lora: bool = False


OBJECTIVES: dict[str, dict[str, object]] = {
    "plain": {"demonstrations": 0},
    "demonstrations": {"demonstrations": 5},
    "stop-gradient": {"demonstrations": 5, "stop_gradient": True},
    "distillation": {"demonstrations": 3, "distill_weight": 1.0, "half_weight": 0.5},
    "text-distillation": {"demonstrations": 2, "text_distill_weight": 1.0},
}
# Only one row of one process has demonstrations, and only from there come gradients of queries.
LONELY: dict[str, object] = {"demonstrations": 1, "contrast_without": 0.0, "text_distill_weight": 1.0}
CASES = {
    f"{name}-{'cached' if cached else 'whole'}": Case(objective, cached)
    for name, objective in OBJECTIVES.items()
    for cached in (False, True)
} | {
    f"lonely-{'lora' if lora else 'projector'}-{'cached' if cached else 'whole'}": Case(
        LONELY, cached, lora=lora, one_demonstration=True
    )
    for lora in (False, True)
    for cached in (False, True)
}
CASES |= {
    f"contextual-lora-{name}-{'cached' if cached else 'whole'}": Case(
        objective, cached, one_demonstration=objective is LONELY, contextual_lora=True
    )
    for name, objective in {"demonstrations": OBJECTIVES["demonstrations"], "lonely": LONELY}.items()
    for cached in (False, True)
}


class Outcome(NamedTuple):
    """What a batch gave a process, and how much of it the process has encoded itself."""

    loss: float
    accuracy: float | None
    tokens: int
    gradients: dict[str, np.ndarray]
    rows: int
    contextual_tokens: int


def outcomes(config: EncoderConfig) -> dict[str, Outcome]:
    return {name: outcome(case, config) for name, case in CASES.items()}


def outcome(case: Case, config: EncoderConfig) -> Outcome:
    """The loss and the gradients of an uneven batch: 9 queries and 18 passages."""
    world = World.current()
    if not case.lora:
        config = config.model_copy(update={"lora": None, "contextual": None, "pooling": "last"})
    if case.contextual_lora:
        assert config.contextual is not None
        contextual = config.contextual.model_copy(update={"lora": config.lora, "residual": True})
        config = config.model_copy(update={"contextual": contextual})
    torch.manual_seed(6)
    encoder = Encoder.create(config, device="cpu")
    for name, parameter in encoder.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    rows, contextual_tokens = [], []
    encoder.model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    if (context_encoder := encoder.model.contextual) is not None:
        forward = context_encoder._forward

        def counted(ids: torch.Tensor, batch: Any) -> torch.Tensor:
            contextual_tokens.append(ids.numel())
            return forward(ids, batch)

        context_encoder._forward = counted

    pairs = [
        Pair("find it", f"query number {i}", f"passage number {i} {'and more ' * i}", (f"wrong {i}",)) for i in range(9)
    ]
    batch = PairSource("test", pairs, weight=1, negatives=1, instruction_dropout=0.0).batch(
        np.arange(len(pairs)), np.random.default_rng(0)
    )
    if case.one_demonstration:  # the others are alone in their groups
        batch = dataclasses.replace(batch, group_Q=np.array([0, 0, *range(1, 8)]))
    objective = Objective.model_validate(case.objective)
    passes = prepare(
        encoder, batch, objective, rng=np.random.default_rng(1), max_length=64, recompute=case.cached, world=world
    )
    assert not case.one_demonstration or sum(map(len, passes.shown)) == 1
    if case.cached:
        losses = cached_gradients(encoder, passes, objective, token_budget=300, seed=3, world=world)
    else:
        losses = epic_losses(encoder, passes, objective, token_budget=300, world=world)
        (losses.total / world.size).backward()
    trained = {name: p for name, p in encoder.model.named_parameters() if p.requires_grad}
    world.sum_gradients([*trained.values()])
    return Outcome(
        losses.total.item(),
        losses.accuracy_without,
        losses.tokens,
        {name: p.grad.numpy() for name, p in trained.items() if p.grad is not None},
        sum(rows),
        sum(contextual_tokens),
    )


@pytest.fixture(scope="module")
def shared(together: Together, tiny_config: EncoderConfig) -> list[dict[str, Outcome]]:
    return together(outcomes, tiny_config)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(
    shared: list[dict[str, Outcome]], tiny_config: EncoderConfig, name: str
) -> None:
    alone = outcome(CASES[name], tiny_config)
    for mine in (process[name] for process in shared):
        assert mine.loss == pytest.approx(alone.loss, abs=1e-4)
        assert (mine.accuracy, mine.tokens) == (alone.accuracy, alone.tokens), "of the whole batch"
        assert mine.gradients.keys() == alone.gradients.keys()
        for parameter, gradient in alone.gradients.items():
            np.testing.assert_allclose(mine.gradients[parameter], gradient, rtol=2e-3, atol=2e-5, err_msg=parameter)


def test_each_process_encodes_its_share(shared: list[dict[str, Outcome]], tiny_config: EncoderConfig) -> None:
    alone = outcome(CASES["demonstrations-whole"], tiny_config)
    mine = [process["demonstrations-whole"] for process in shared]
    assert [outcome.rows for outcome in mine] == [5 + 9 + 5, 4 + 9 + 4] and alone.rows == 9 + 18 + 9
    tokens = [outcome.contextual_tokens for outcome in mine]
    assert sum(tokens) == alone.contextual_tokens and max(tokens) < 0.6 * alone.contextual_tokens


def test_shares_are_all_rows_and_about_equal() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, size=100).tolist()
    shares = [World(rank, 8).share(lengths) for rank in range(8)]
    assert sorted(np.concatenate(shares)) == list(range(100))
    tokens = [sum(lengths[i] for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= 500
    assert sorted(World().share(lengths)) == list(range(100))


def steps_of(
    recipe: Recipe, out: Path, *, resume: bool = False, stop: int | None = None
) -> tuple[list[StepReport], TrainResult | None]:
    """The steps of a run, which may be stopped as if it were killed after one of them."""
    rows: list[StepReport] = []
    report = rows.append if stop is None else stop_after(stop, rows)
    result = None
    with nullcontext() if stop is None else pytest.raises(StopError):
        result = train(recipe, out=out, resume=resume, device="cpu", report=report)
    return rows, result


def losses(rows: list[StepReport]) -> list[float]:
    return [row.loss for row in rows]


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
def test_a_run_is_that_of_one_process(
    recipe: Recipe,
    together: Together,
    tmp_path: Path,
    cached: bool,
) -> None:
    settings = recipe.optimizer.model_copy(update={"gradient_cache": cached})
    recipe = recipe.model_copy(update={"optimizer": settings})
    alone, result = steps_of(recipe, tmp_path / "one")
    assert result is not None
    (first, said), (second, unsaid) = together(steps_of, recipe, tmp_path / "two")
    np.testing.assert_allclose(losses(first), losses(alone), atol=1e-4)
    assert losses(first) == losses(second)
    for file in ("projectors.safetensors", "lora/adapter_model.safetensors"):
        mine, theirs = load_file(said.encoder / file), load_file(result.encoder / file)
        for name, weight in theirs.items():
            np.testing.assert_allclose(mine[name], weight, atol=2e-5, err_msg=name)
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert log == [dataclasses.asdict(row) for row in first], "one process writes"
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    assert result.after is not None and said.after.ndcg_at_10 == pytest.approx(result.after.ndcg_at_10, abs=1e-3)
    assert unsaid.encoder == said.encoder and unsaid.after is None


def test_a_run_goes_on_with_another_number_of_processes(
    recipe: Recipe,
    together: Together,
    tmp_path: Path,
) -> None:
    whole, _ = steps_of(recipe, tmp_path / "whole")
    parts = tmp_path / "parts"
    [(two, _), _] = together(steps_of, recipe, parts, stop=3)
    one, _ = steps_of(recipe, parts, resume=True, stop=5)
    [(again_two, _), _] = together(steps_of, recipe, parts, resume=True)
    rows = two[:2] + one[:2] + again_two
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6], "from the checkpoints of steps 2 and 4"
    np.testing.assert_allclose(losses(rows), losses(whole), atol=1e-4)


def test_processes_that_read_different_files_are_told(
    recipe: Recipe,
    together: Together,
    data: Path,
    tmp_path: Path,
) -> None:
    lines = (data / "labels.jsonl").read_text().splitlines(keepends=True)
    for rank in (0, 1):
        (data / f"labels-{rank}.jsonl").write_text("".join(lines[: 120 - rank]))
    labels = [{"files": str(data / "labels-${RANK}.jsonl")}]
    torn = Recipe.model_validate({**recipe.model_dump(), "data": {"labels": labels}})
    said = together(refusal_of, torn, tmp_path / "run")
    assert said[0] == said[1]
    assert said[0].startswith("process 0 has 120 rows of training data and no checkpoint, but process 1 has 119 rows")
    assert not (tmp_path / "run").exists()


def refusal_of(recipe: Recipe, out: Path) -> str:
    with pytest.raises(UserError) as refusal:
        train(recipe, out=out, device="cpu")
    return str(refusal.value)


def test_more_processes_than_queries(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "current", lambda: World(3, 16))
    assert "batch_size = 8 is less than a query for each of 16 processes" in refusal_of(recipe, tmp_path / "run")
