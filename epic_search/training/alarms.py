"""What looks wrong in the log of a training run, each as one sentence that says what to do about it.

The limits are hints, not tests. Where their reason is not a calculation, they were set by hand on the logs of three
runs of 200 steps that differ in little.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from epic_search.errors import UserError
from epic_search.training.recipe import Recipe
from epic_search.training.recipe_files import expand

Row = dict[str, Any]

RECENT = 50  # steps looked back on
ENOUGH = 10  # steps that a judgement needs
SETTLED = 50  # steps after the warm-up, before which a run has learned too little to be judged
SPIKE = 5.0
CHANCE = 2.0
COLLAPSED = 0.9
RISEN = 6.0
UNREAD_LABELS, UNREAD_PAIRS = 0.03, 0.005
EMPTY_LOSS, EMPTY_STEPS = 1e-4, 3
NAMED = 5  # sources that a sentence names
# Parts of the loss; None where no query of the batch counts.
PARTS = ("without", "with_demonstrations", "distillation", "text_distillation")
FINITE = ("loss", *PARTS, "gradient_norm")


@dataclass(frozen=True)
class Alarm:
    """Something that looks wrong. `kind` stays the same while the numbers in the sentence change."""

    kind: str
    sentence: str


def find_alarms(recipe: Recipe, rows: Sequence[Row], *, planned: Mapping[str, int] | None) -> list[Alarm]:
    """What looks wrong in the rows of a log. `planned`: steps of the whole run by source, None where not known."""
    return [
        *_non_finite(rows),
        *_spikes(rows),
        *_rise(recipe, rows),
        *_chance(recipe, rows),
        *_collapse(recipe, rows),
        *_unread(recipe, rows),
        *_empty(rows),
        *_never_drawn(recipe, rows, planned),
    ]


class Watch:
    """Looks at a log while it grows, and tells each kind of alarm once."""

    def __init__(self, recipe: Recipe, *, planned: Mapping[str, int]) -> None:
        self._recipe = recipe
        self._planned = planned
        self._told: set[str] = set()
        self._next = 0

    def new_alarms(self, rows: Sequence[Row]) -> list[Alarm]:
        """Alarms of kinds not told before, after every tenth step or, in a long log, every hundredth part of it.

        So that the time this takes, which grows with the log, stays a small part of the run.
        """
        if len(rows) < self._next:
            return []
        self._next = len(rows) + max(ENOUGH, len(rows) // 100)
        alarms = find_alarms(self._recipe, rows, planned=self._planned)
        fresh = [alarm for alarm in alarms if alarm.kind not in self._told]
        self._told |= {alarm.kind for alarm in fresh}
        return fresh


def unseen_sources(recipe: Recipe, rows: Sequence[Row], *, planned: Mapping[str, int] | None) -> list[str] | None:
    """Sources that no step has drawn from yet.

    Where `planned` is not known, files and data sets of the recipe; None if the files are not at hand either.
    """
    drawn = {row["source"] for row in rows}
    if planned is not None:
        return [name for name in planned if name not in drawn]
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


def _settled(recipe: Recipe, rows: Sequence[Row]) -> bool:
    return len(rows) >= recipe.optimizer.warmup_steps + SETTLED


def _non_finite(rows: Sequence[Row]) -> Iterator[Alarm]:
    """No limit: a number that is none never becomes one again."""
    for row in rows:
        for name in FINITE:
            if row.get(name) is not None and not math.isfinite(row[name]):
                yield Alarm(
                    "not finite",
                    f"{name} is {row[name]} at step {row['step']} ({row['source']}); start a new run with lower "
                    "learning rates or precision = 'float32'",
                )
                return


def _spikes(rows: Sequence[Row]) -> Iterator[Alarm]:
    """A gradient norm of SPIKE times the median of the RECENT steps before: three sound runs stayed below 4 times."""
    norms = [row["gradient_norm"] for row in rows]
    spikes = []
    for i in range(ENOUGH, len(norms)):
        usual = median(norms[max(0, i - RECENT) : i])
        if norms[i] > SPIKE * usual > 0:
            spikes.append((rows[i], norms[i] / usual))
    if spikes:
        row, times = spikes[-1]
        count = "once" if len(spikes) == 1 else f"{len(spikes)} times"
        yield Alarm(
            "spike",
            f"the gradient norm jumped {count}, last at step {row['step']} ({row['source']}) to {times:.0f} times what "
            "was usual; if the loss does not recover, lower the learning rates or look at that data",
        )


def _rise(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Alarm]:
    """The loss of the last RECENT steps lies RISEN standard errors above the lowest mean of as many steps before.

    Losses are taken relative to the mean of their source, since sources differ more than steps. On a plateau of 10,000
    steps the lowest of 200 such means lies about 3 standard errors below the plateau, and the last one may lie as far
    above: 6 is more than chance gives. Three sound runs stayed below 1.5.
    """
    rows = [row for row in rows if math.isfinite(row["loss"])]
    if len(rows) < recipe.optimizer.warmup_steps + 2 * RECENT:
        return
    by_source: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row["loss"])
    usual = {source: fmean(losses) for source, losses in by_source.items()}
    above = [row["loss"] - usual[row["source"]] for row in rows]
    sums = [sum(above[:RECENT])]
    for leaving, coming in zip(above, above[RECENT:], strict=False):
        sums.append(sums[-1] + coming - leaving)
    now, lowest = sums[-1] / RECENT, min(sums[:-RECENT]) / RECENT
    if now - lowest > RISEN * stdev(above[-RECENT:]) / math.sqrt(RECENT):
        yield Alarm(
            "rise",
            f"the loss is rising: over the last {RECENT} steps it lies {now - lowest:.2f} above its lowest so far, "
            "source by source; lower the learning rates, or go back to an earlier checkpoint",
        )


def _chance(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Alarm]:
    """In-batch accuracy below CHANCE times one in a batch.

    By chance a batch has one hit: ENOUGH to RECENT batches have as many hits as batches, give or take the root of that,
    so 2 lies three to seven standard errors above chance. A model that has learned anything is far above it.
    """
    if not _settled(recipe, rows):
        return
    limit = CHANCE / recipe.optimizer.batch_size
    for kind, labels in (("pairs", False), ("label batches", True)):
        recent = [row for row in rows if is_label_batch(row) is labels][-RECENT:]
        seen = [a for row in recent for a in (row.get("accuracy_without"), row.get("accuracy_with")) if a is not None]
        if len(recent) >= ENOUGH and seen and fmean(seen) < limit:
            yield Alarm(
                f"chance: {kind}",
                f"in-batch accuracy on {kind} is at chance ({fmean(seen):.3f} over the last {len(recent)} of them); "
                "the vectors may have collapsed: start anew with a lower learning rate",
            )


def _collapse(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Alarm]:
    """The mean cosine between different passages of a batch is above 1 - temperature * ln(batch size).

    There even a positive of cosine 1 gets less than half of the probability among a batch of others at the mean: the
    loss can no longer tell passages apart. Never below COLLAPSED, since at high temperatures vectors that are close
    together may be all that is asked for.
    """
    limit = max(COLLAPSED, 1 - recipe.objective.temperature * math.log(recipe.optimizer.batch_size))
    recent = [row["passage_cosine"] for row in rows[-RECENT:] if row.get("passage_cosine") is not None]
    if _settled(recipe, rows) and len(recent) >= ENOUGH and fmean(recent) > limit:
        yield Alarm(
            "collapse",
            f"the vectors have collapsed: the mean cosine between different passages is {fmean(recent):.3f} over the "
            f"last {len(recent)} steps, and above {limit:.3f} they cannot be told apart; start anew with a lower "
            "learning rate",
        )


def _unread(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Alarm]:
    """Losses with and without demonstrations differ, in the median, by less than UNREAD_LABELS or UNREAD_PAIRS of them.

    With the demonstrations ignored they still differ a little: a passage that is shown as a demonstration is no
    negative of that query. Over 50 label batches three runs had medians of 0.14, 0.12 and 0.02; the limit lies between,
    and that the third did not read its demonstrations is a guess from the same numbers.
    """
    if not recipe.objective.demonstrations or not _settled(recipe, rows):
        return
    both = [row for row in rows if row.get("without") and row.get("with_demonstrations") is not None]
    labels = [row for row in both if is_label_batch(row)][-RECENT:]
    recent = labels if len(labels) >= ENOUGH else [row for row in both if not is_label_batch(row)][-RECENT:]
    if len(recent) < ENOUGH:
        return
    difference = median(abs(row["with_demonstrations"] - row["without"]) / row["without"] for row in recent)
    if difference < (UNREAD_LABELS if recent is labels else UNREAD_PAIRS):
        remedy = "raise instruction_dropout" if recent is labels else "add [[data.labels]], where they are needed"
        yield Alarm(
            "unread",
            f"losses with and without demonstrations are nearly equal (median difference {difference:.1%} over "
            f"{len(recent)} batches): the demonstrations seem not to be read; {remedy}",
        )


def _empty(rows: Sequence[Row]) -> Iterator[Alarm]:
    """A source of which all of EMPTY_STEPS steps or more came to nothing; fewer may be luck.

    No query counted, the gradient was 0, or the loss was below EMPTY_LOSS: there the positive has 99.99 % of the
    probability, and nothing is left to learn.
    """
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    for source, mine in by_source.items():
        if len(mine) < EMPTY_STEPS:
            continue
        if all(row.get(name) is None for row in mine for name in PARTS):
            what = "no query of it counted"
            remedy = "lower instruction_dropout or raise objective.demonstrations"
        elif max(row["gradient_norm"] for row in mine) == 0:
            what, remedy = "its gradient was 0", "take it out"
        elif max(row["loss"] for row in mine) < EMPTY_LOSS:
            what = f"its loss was below {EMPTY_LOSS:g}"
            remedy = "take it out, or mine harder negatives for it"
        else:
            continue
        yield Alarm(f"empty: {source}", f"{source} teaches nothing: {what} in all of {len(mine)} steps; {remedy}")


def _never_drawn(recipe: Recipe, rows: Sequence[Row], planned: Mapping[str, int] | None) -> Iterator[Alarm]:
    """Sources that no step of the run draws from, as is known from its first step on.

    Without the plan, in a run by an older version, those that the first half of the steps did not draw: what is missed
    by half of them is hardly in the other half.
    """
    steps = recipe.optimizer.steps
    if planned is not None:
        names, when = [name for name, count in planned.items() if not count], f"in the {steps} steps of the run"
    elif 2 * len(rows) >= steps:
        names, when = unseen_sources(recipe, rows, planned=None) or [], f"in {len(rows)} of {steps} steps"
    else:
        return
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield Alarm(
            "never drawn",
            f"never drawn {when}: {', '.join(names[:NAMED])}{more}; raise their weight, or lower batch_size below "
            "their number of pairs",
        )
