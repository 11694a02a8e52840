"""What looks wrong in the log of a training run, each as one sentence that says what to do about it.

The limits were set by hand on the logs of three runs that differ in little: they are hints, not tests.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from epic_search.errors import UserError
from epic_search.training.recipe import Recipe, expand

Row = dict[str, Any]

RECENT = 50  # steps looked back on
ENOUGH = 10  # steps that a judgement needs
SPIKE = 5.0  # times the median of the steps before; the three runs stayed below 4
CHANCE = 2.0  # times one in a batch
SETTLED = 50  # steps after the warm-up, before which a run has learned too little to be judged
# With the demonstrations ignored, losses with and without them still differ a little: a passage that is shown as a
# demonstration is no negative of that query. Over 50 label batches the three runs had medians of 0.14, 0.12 and 0.02;
# the limit lies between, and that the third did not read its demonstrations is a guess from the same numbers.
UNREAD_LABELS, UNREAD_PAIRS = 0.03, 0.005
EMPTY_LOSS = 1e-4
FINITE = ("loss", "without", "with_demonstrations", "distillation", "text_distillation", "gradient_norm")


def find_alarms(recipe: Recipe, rows: Sequence[Row], *, never_drawn: Sequence[str] | None) -> list[str]:
    """One sentence for each thing that looks wrong in the rows of a log; `never_drawn` as `unseen_sources` gives it."""
    found = [_non_finite(rows), _spikes(rows), *_chance(recipe, rows), _unread(recipe, rows), *_empty(rows)]
    if never_drawn and 2 * len(rows) >= recipe.optimizer.steps:
        found.append(
            f"never drawn in {len(rows)} of {recipe.optimizer.steps} steps: {', '.join(never_drawn)}; raise their "
            "weight, or lower batch_size below their number of pairs"
        )
    return [sentence for sentence in found if sentence]


def unseen_sources(recipe: Recipe, rows: Sequence[Row]) -> list[str] | None:
    """Files and data sets of the recipe that no step has drawn from; None where the files are not at hand."""
    drawn = {row["source"] for row in rows}
    try:
        names = _source_names(recipe)
    except UserError:
        return None
    return [name for name in names if not any(source == name or source.startswith(f"{name}: ") for source in drawn)]


def is_label_batch(row: Row) -> bool:
    """Whether a step drew texts with labels, where demonstrations matter most, and not pairs."""
    return str(row["source"]).startswith("labels/")


def _source_names(recipe: Recipe) -> list[str]:
    """As `pairs.py` and `labels.py` name sources, without the task: that stands in the files."""
    names: list[str] = []
    for pairs in recipe.data.pairs:
        if pairs.files:
            names += [_stem(path.name) for path in expand(pairs.files)]
        else:
            names.append(pairs.dataset or "python-stdlib")
    names += [f"labels/{_stem(path.name)}" for labels in recipe.data.labels for path in expand(labels.files)]
    return list(dict.fromkeys(names))


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".jsonl")


def _non_finite(rows: Sequence[Row]) -> str | None:
    for row in rows:
        for name in FINITE:
            if row.get(name) is not None and not math.isfinite(row[name]):
                return (
                    f"{name} is {row[name]} at step {row['step']} ({row['source']}); start a new run with lower "
                    "learning rates or precision = 'float32'"
                )
    return None


def _spikes(rows: Sequence[Row]) -> str | None:
    norms = [row["gradient_norm"] for row in rows]
    spikes = []
    for i in range(ENOUGH, len(norms)):
        usual = median(norms[max(0, i - RECENT) : i])
        if norms[i] > SPIKE * usual > 0:
            spikes.append((rows[i], norms[i] / usual))
    if not spikes:
        return None
    row, times = spikes[-1]
    count = "once" if len(spikes) == 1 else f"{len(spikes)} times"
    return (
        f"the gradient norm jumped {count}, last at step {row['step']} ({row['source']}) to {times:.0f} times what was "
        "usual; if the loss does not recover, lower the learning rates or look at that data"
    )


def _chance(recipe: Recipe, rows: Sequence[Row]) -> list[str]:
    if len(rows) < recipe.optimizer.warmup_steps + SETTLED:
        return []
    limit = CHANCE / recipe.optimizer.batch_size
    found = []
    for labels in (False, True):
        recent = [row for row in rows if is_label_batch(row) is labels][-RECENT:]
        seen = [a for row in recent for a in (row.get("accuracy_without"), row.get("accuracy_with")) if a is not None]
        if len(recent) >= ENOUGH and seen and fmean(seen) < limit:
            kind = "label batches" if labels else "pairs"
            found.append(
                f"in-batch accuracy on {kind} is at chance ({fmean(seen):.3f} over the last {len(recent)} of them); "
                "the vectors may have collapsed: start anew with a lower learning rate"
            )
    return found


def _unread(recipe: Recipe, rows: Sequence[Row]) -> str | None:
    if not recipe.objective.demonstrations or len(rows) < recipe.optimizer.warmup_steps + SETTLED:
        return None
    both = [row for row in rows if row.get("without") and row.get("with_demonstrations") is not None]
    labels = [row for row in both if is_label_batch(row)][-RECENT:]
    recent = labels if len(labels) >= ENOUGH else [row for row in both if not is_label_batch(row)][-RECENT:]
    limit = UNREAD_LABELS if recent is labels else UNREAD_PAIRS
    if len(recent) < ENOUGH:
        return None
    difference = median(abs(row["with_demonstrations"] - row["without"]) / row["without"] for row in recent)
    if not difference < limit:
        return None
    remedy = "raise instruction_dropout" if recent is labels else "add [[data.labels]], where they are needed"
    return (
        f"losses with and without demonstrations are nearly equal (median difference {difference:.1%} over "
        f"{len(recent)} batches): the demonstrations seem not to be read; {remedy}"
    )


def _empty(rows: Sequence[Row]) -> list[str]:
    losses: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        losses[row["source"]].append(row["loss"])
    return [
        f"{source} teaches nothing: its loss was below {EMPTY_LOSS:g} in all of {len(seen)} steps; take it out, "
        "or mine harder negatives for it"
        for source, seen in losses.items()
        if len(seen) >= 3 and max(seen) < EMPTY_LOSS
    ]
