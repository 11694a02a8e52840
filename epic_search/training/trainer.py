"""The training loop: steps, checkpoints, resume. What a step does is in `learner.py`.

A run folder holds `recipe.json`, what `journal.py` writes while the run goes, `state-N/` (the last checkpoint, see
`state.py`) and, at the end, `encoder/` and `heldout.json`. Several processes (see `parallel.py`) train as one: the
first of them writes.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from epic_search.encoder import checkpoint as checkpoints
from epic_search.encoder.config import RESULT, EncoderConfig
from epic_search.encoder.device import DTYPES, Device, choose_device, choose_dtype
from epic_search.encoder.encoder import Encoder
from epic_search.errors import UserError
from epic_search.training.average import MovingAverage
from epic_search.training.calibration import calibrate
from epic_search.training.compatibility import check_objective
from epic_search.training.dev_meter import DevMeter, evaluation_mode
from epic_search.training.heldout import Quality, measure
from epic_search.training.journal import Journal
from epic_search.training.learner import Learner, make_optimizer, trained
from epic_search.training.mixture import Mixture
from epic_search.training.parallel import World
from epic_search.training.recipe import CONTEXTUAL, Recipe
from epic_search.training.state import Progress, latest_state, load_state, replace_folder, save_state
from epic_search.training.status import RECIPE, save_heldout
from epic_search.training.teachers import find_teacher
from epic_search.training.tracker import TensorBoard, TrackerName, check_tracker


@dataclass(frozen=True)
class StepReport:
    """One step, for the progress display and the log. Rates are of this step; `seconds` is the time so far.

    Losses and accuracies are None where no query of the batch counts for them. `passage_cosine`: mean cosine between
    different passages of the batch. `padding`: share of the backbone's input positions without a token. `memory_mb`:
    the most memory taken so far, see `memory.py`.
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
    passage_cosine: float
    gradient_norm: float
    learning_rate: float
    padding: float
    memory_mb: float | None
    pairs_per_second: float
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """Where the trained encoder is and, when pairs were held out, its quality on them before and after.

    Of several processes only the first knows the quality.
    """

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
    tracker: TrackerName | None = None,
    report: Callable[[StepReport], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Run a recipe into the folder `out`. `report` gets every step, `say` what a person would want to know besides.

    Raises UserError when `out` holds a run and `resume` is off, or a run of another recipe, and when what the tracker
    or the dev suite needs is not there.
    """
    _check_run(recipe, out, resume=resume)
    if tracker is not None:
        check_tracker(tracker)
    settings = recipe.optimizer
    world = World.current()
    if settings.batch_size < world.size:
        raise UserError(
            f"batch_size = {settings.batch_size} is less than a query for each of {world.size} processes; raise it, "
            "or start fewer"
        )
    say(f"reading the training data of '{recipe.name}'")
    mixture = Mixture(recipe.data, batch_size=settings.batch_size, steps=settings.steps, seed=recipe.seed)
    dev = DevMeter(recipe.dev, mixture.heldout) if recipe.dev is not None and world.first else None
    state = latest_state(out)
    config, start = _origin(recipe)
    check_objective(recipe.objective, config)
    torch.manual_seed(recipe.seed)
    where = choose_device(device)
    precision = choose_dtype(settings.precision, where)
    say(f"training on {where.type} in {precision.value}: {precision.reason}")
    if world.size > 1:
        say(f"{world.size} processes share the work of each step")
    dtype = DTYPES[precision.value]
    encoder = Encoder.create(config, start=state or start, device=device, dtype=dtype, backbone=settings.backbone)
    if state is None and start is None:
        calibrate(encoder, mixture, max_length=recipe.data.max_length)
    optimizer = make_optimizer(encoder, settings)
    teacher = None
    if recipe.objective.taught and recipe.objective.teacher != CONTEXTUAL:
        say(f"loading the teacher {recipe.objective.teacher}")
        teacher = find_teacher(recipe.objective.teacher, device=device)
    rows = sum(map(len, mixture.sources))
    world.wait(agreeing_on=f"{rows} rows of training data and {state.name if state else 'no checkpoint'}")
    # Only now, so that a mistake in the recipe leaves nothing behind.
    if world.first:
        _begin_run(recipe, out)
    average = MovingAverage(trained(optimizer), decay=settings.ema) if settings.ema is not None else None
    progress = Progress()
    if state is not None:
        progress = load_state(state, optimizer, average)
        say(f"resuming after step {progress.step} of {settings.steps}")
    elif mixture.heldout and world.first:
        say(f"measuring on {len(mixture.heldout)} held-out pairs")
        with evaluation_mode(encoder.model):
            progress.before = measure(encoder, mixture.heldout)

    learner = Learner(recipe, encoder, optimizer, average, mixture, teacher, world)
    if world.first:
        board = TensorBoard(out, step=progress.step) if tracker is not None else None
        planned = mixture.planned
        with Journal(out, recipe, step=progress.step, planned=planned, dev=dev, tracker=board, say=say) as journal:
            _run(learner, progress, journal, out=out, report=report)
    else:
        _run(learner, progress, None, out=out, report=report)
    if average is not None:
        average.put_in_place()
    if world.first:
        replace_folder(out / RESULT, encoder.save)
    after = None
    if mixture.heldout and world.first:
        say(f"measuring on {len(mixture.heldout)} held-out pairs")
        after = measure(Encoder.load(out / RESULT, device=device, dtype=settings.precision), mixture.heldout)
        if progress.before is not None:
            save_heldout(out, before=progress.before, after=after)
    world.wait()
    return TrainResult(out / RESULT, settings.steps, progress.seconds, progress.before, after)


def _run(
    learner: Learner, progress: Progress, journal: Journal | None, *, out: Path, report: Callable[[StepReport], None]
) -> None:
    """The steps that are left. `journal`: of the process that writes for all, None in the others."""
    recipe, steps = learner.recipe, learner.recipe.optimizer.steps
    if progress.step == 0 and journal is not None:
        journal.measure(learner.encoder, 0)
    before, began = progress.seconds, time.monotonic()
    for step in range(progress.step, steps):
        result = learner.step(step)
        progress.step, progress.seconds = step + 1, before + time.monotonic() - began
        row = StepReport(step=step + 1, steps=steps, seconds=progress.seconds, **result)
        if journal is not None:
            journal.add(asdict(row))
        report(row)
        if journal is None:
            continue
        # Before the checkpoint: what is measured after it would be missing in a run that is stopped in between.
        journal.measure(learner.encoder, progress.step)
        if progress.step % recipe.checkpoint_steps == 0 or progress.step == steps:
            save_state(out, learner.encoder, learner.optimizer, progress, learner.average)


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
    changes: dict[str, object] = {"name": recipe.name, "dim": None}
    if recipe.objective.matryoshka is not None:
        changes["matryoshka"] = recipe.objective.matryoshka
    if recipe.encoder is not None:
        return recipe.encoder.model_copy(update=changes), None
    assert recipe.start is not None
    found = checkpoints.find(recipe.start)
    return found.config.model_copy(update=changes), found.folder
