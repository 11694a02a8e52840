"""The training loop: steps, checkpoints, resume. What a step computes is in `objective.py`.

A run folder holds `recipe.json`, `log.jsonl` (a line a step), `state-N/` (the last checkpoint, see `state.py`) and, at
the end, `encoder/` and `heldout.json`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from epic_search.encoder import checkpoint as checkpoints
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.encoder import DTYPES, Device, Encoder, choose_device, choose_dtype
from epic_search.errors import UserError
from epic_search.training.gradcache import cached_gradients
from epic_search.training.heldout import Quality, measure
from epic_search.training.mixture import Mixture
from epic_search.training.objective import epic_losses, prepare
from epic_search.training.recipe import CONTEXTUAL, Optimizer, Recipe, require_soft
from epic_search.training.state import Progress, latest_state, load_state, replace_folder, save_state
from epic_search.training.status import LOG, RECIPE, RESULT, save_heldout
from epic_search.training.teachers import Teacher, find_teacher

_DEMONSTRATIONS = 100  # stream of random numbers for drawing demonstrations, apart from those of the mixture


@dataclass(frozen=True)
class StepReport:
    """One step, for the progress display and the log. Rates are of this step; `seconds` is the time so far.

    Losses and accuracies are None where no query of the batch counts for them.
    """

    step: int
    steps: int
    source: str
    loss: float
    without: float | None
    with_demonstrations: float | None
    distillation: float | None
    text_distillation: float | None
    accuracy_without: float | None
    accuracy_with: float | None
    gradient_norm: float
    learning_rate: float
    pairs_per_second: float
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """Where the trained encoder is and, when pairs were held out, its quality on them before and after."""

    encoder: Path
    steps: int
    seconds: float
    before: Quality | None
    after: Quality | None


def train(
    recipe: Recipe,
    *,
    out: Path,
    resume: bool = False,
    device: Device = "auto",
    report: Callable[[StepReport], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Run a recipe into the folder `out`. `report` gets every step, `say` what a person would want to know besides.

    Raises UserError when `out` holds a run and `resume` is off, or a run of another recipe.
    """
    _check_run(recipe, out, resume=resume)
    settings = recipe.optimizer
    say(f"reading the training data of '{recipe.name}'")
    mixture = Mixture(recipe.data, batch_size=settings.batch_size, steps=settings.steps, seed=recipe.seed)
    for name in mixture.left_out:
        say(f"left out {name}: fewer pairs than the batch size {settings.batch_size}")

    state = latest_state(out)
    config, start = _origin(recipe)
    require_soft(recipe.objective, config)
    torch.manual_seed(recipe.seed)
    where = choose_device(device)
    precision = choose_dtype(settings.precision, where)
    say(f"training on {where.type} in {precision.value}: {precision.reason}")
    encoder = Encoder.create(config, start=state or start, device=device, dtype=DTYPES[precision.value])
    teacher = None
    if recipe.objective.taught and recipe.objective.teacher != CONTEXTUAL:
        say(f"loading the teacher {recipe.objective.teacher}")
        teacher = find_teacher(recipe.objective.teacher, device=device)
    # Only now, so that a mistake in the recipe leaves nothing behind.
    _begin_run(recipe, out)
    optimizer = make_optimizer(encoder, settings)
    progress = Progress()
    if state is not None:
        progress = load_state(state, optimizer)
        say(f"resuming after step {progress.step} of {settings.steps}")
    elif mixture.heldout:
        say(f"measuring on {len(mixture.heldout)} held-out pairs")
        progress.before = measure(encoder, mixture.heldout)

    _run(recipe, encoder, optimizer, mixture, progress, out=out, teacher=teacher, report=report)
    replace_folder(out / RESULT, encoder.save)
    after = None
    if mixture.heldout:
        say(f"measuring on {len(mixture.heldout)} held-out pairs")
        after = measure(Encoder.load(out / RESULT, device=device, dtype=settings.precision), mixture.heldout)
        if progress.before is not None:
            save_heldout(out, before=progress.before, after=after)
    return TrainResult(out / RESULT, settings.steps, progress.seconds, progress.before, after)


def make_optimizer(encoder: Encoder, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over what requires gradients: LoRA layers at one learning rate, projectors at another."""
    projectors = [parameter for part in encoder.model.projectors().values() for parameter in part.parameters()]
    lora = [parameter for parameter in encoder.model.backbone.parameters() if parameter.requires_grad]
    groups = [
        {"params": lora, "peak": settings.learning_rate},
        {"params": projectors, "peak": settings.projector_learning_rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, weight_decay=settings.weight_decay)


def rate_factor(step: int, settings: Optimizer) -> float:
    """Share of the peak learning rate at a step (counted from 0): linear warm-up, then a linear fall."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    left = (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)
    return settings.final_fraction + (1 - settings.final_fraction) * left


def _run(
    recipe: Recipe,
    encoder: Encoder,
    optimizer: torch.optim.AdamW,
    mixture: Mixture,
    progress: Progress,
    *,
    out: Path,
    teacher: Teacher | None,
    report: Callable[[StepReport], None],
) -> None:
    settings = recipe.optimizer
    before = progress.seconds
    began = time.monotonic()
    # Line by line: `train status` reads along.
    with _log_after(out / LOG, progress.step).open("a", encoding="utf-8", buffering=1) as log:
        for step in range(progress.step, settings.steps):
            result = _step(step, recipe, encoder, optimizer, mixture, teacher)
            progress.step, progress.seconds = step + 1, before + time.monotonic() - began
            row = StepReport(step=step + 1, steps=settings.steps, seconds=progress.seconds, **result)
            log.write(json.dumps(asdict(row)) + "\n")
            report(row)
            if progress.step % recipe.checkpoint_steps == 0 or progress.step == settings.steps:
                save_state(out, encoder, optimizer, progress)


def _step(
    step: int,
    recipe: Recipe,
    encoder: Encoder,
    optimizer: torch.optim.AdamW,
    mixture: Mixture,
    teacher: Teacher | None,
) -> dict[str, Any]:
    settings = recipe.optimizer
    began = time.monotonic()
    factor = rate_factor(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    batch = mixture.batch(step)
    rng = np.random.default_rng([recipe.seed, _DEMONSTRATIONS, step])
    # Dropout, where a recipe asks for it, must not depend on where the run was resumed.
    torch.manual_seed(recipe.seed + step)
    objective, budget = recipe.objective, settings.token_budget
    passes = prepare(encoder, batch, objective, rng=rng, max_length=recipe.data.max_length, teacher=teacher)
    if settings.gradient_cache:
        losses = cached_gradients(encoder, passes, objective, token_budget=budget, seed=recipe.seed + step)
    else:
        losses = epic_losses(encoder, passes, objective, token_budget=budget)
        losses.total.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
    if not torch.isfinite(norm):
        raise UserError(
            f"the gradient of step {step + 1} ({batch.source}) is not finite; start a new run with lower learning "
            "rates or precision = 'float32'"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.monotonic() - began
    return {
        "source": batch.source,
        "loss": losses.total.item(),
        "without": losses.without,
        "with_demonstrations": losses.with_demonstrations,
        "distillation": losses.distillation,
        "text_distillation": losses.text_distillation,
        "accuracy_without": losses.accuracy_without,
        "accuracy_with": losses.accuracy_with,
        "gradient_norm": norm.item(),
        "learning_rate": settings.learning_rate * factor,
        "pairs_per_second": len(batch.queries) / seconds,
        "tokens_per_second": losses.tokens / seconds,
    }


def _check_run(recipe: Recipe, out: Path, *, resume: bool) -> None:
    """Raise UserError when `out` holds a run that must not be continued with this recipe."""
    path = out / RECIPE
    if not path.is_file():
        if resume:
            raise UserError(f"{out} holds no run to resume; leave out --resume to begin one there, or correct --out")
        return
    if not resume:
        raise UserError(f"{out} already holds a run; continue it with --resume, or choose another folder with --out")
    try:
        same = Recipe.model_validate_json(path.read_text(encoding="utf-8")) == recipe
    except (ValidationError, UnicodeDecodeError):
        same = False
    if not same:
        raise UserError(
            f"{out} holds a run of another recipe (see {path}); resume it with that recipe or choose another --out"
        )


def _begin_run(recipe: Recipe, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / RECIPE).write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"the run folder {out} cannot be written: {error.strerror}; choose another --out") from error


def _origin(recipe: Recipe) -> tuple[EncoderConfig, Path | None]:
    """The configuration to train, under the recipe's name, and the checkpoint folder to start from."""
    if recipe.encoder is not None:
        return recipe.encoder.model_copy(update={"name": recipe.name}), None
    assert recipe.start is not None
    found = checkpoints.find(recipe.start)
    return found.config.model_copy(update={"name": recipe.name}), found.folder


def _log_after(path: Path, step: int) -> Path:
    """The log, without the lines of steps that a stopped run took after its last checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    return path
