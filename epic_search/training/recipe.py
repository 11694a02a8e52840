"""Recipes: TOML files that say everything about a training run, checked before anything is loaded.

A recipe that begins with `extends = "FILE"` (beside it) says only what is different from that one: its tables are
merged into the other's, key by key, and everything else, lists among it, takes the other's place.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from epic_search.encoder.config import EncoderConfig, StrictModel, first_problem, read_toml
from epic_search.errors import UserError

DATA_VARIABLE = "EPIC_SEARCH_DATA"
DEFAULT_DATA = "../shared/data"
CONTEXTUAL = "contextual"  # as a teacher: the encoder's own Contextual encoder


class PairData(StrictModel):
    """Pairs {task, query, positive, negatives}: JSONL files (globs), a `datasets` data set, or the standard library.

    Exactly one of `files`, `dataset` (hub id or local folder) and `builtin`. `columns` maps our names to a data set's;
    `task` is the instruction where rows carry none.
    """

    files: str | list[str] | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    columns: dict[Literal["query", "positive", "negatives", "task"], str] = {}
    builtin: Literal["python-stdlib"] | None = None
    task: str | None = None
    limit: int | None = Field(None, ge=2)
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _one_origin(self) -> "PairData":
        given = [key for key in ("files", "dataset", "builtin") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of files, dataset and builtin, not {' and '.join(given) or 'none'}")
        return self


class LabelData(StrictModel):
    """Texts with several views of labels: JSONL files of {text, labels: {view: label or [labels]}}.

    A batch mixes `views_per_batch` views of the same texts, so that which relation is meant can only be told from the
    instruction or, where that is dropped (`instruction_dropout`), from the demonstrations.
    """

    files: str | list[str]
    exclude_views: list[str] = []
    views_per_batch: int = Field(3, ge=1)
    instruction_dropout: float = Field(0.7, ge=0, le=1)
    weight: float = Field(1.0, gt=0)


class Data(StrictModel):
    """What a run learns from. A step draws one source, with probability weight * size**`temperature`."""

    pairs: list[PairData] = []
    labels: list[LabelData] = []
    temperature: float = Field(0.5, ge=0, le=1)
    heldout: int = Field(0, ge=0)
    negatives_per_query: int = Field(1, ge=0)
    max_length: int = Field(128, ge=8)
    instruction_dropout: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _something(self) -> "Data":
        if not self.pairs and not self.labels:
            raise ValueError("there is nothing to learn from: add [[data.pairs]] or [[data.labels]]")
        return self


class Objective(StrictModel):
    """The EPIC objective (arXiv 2605.01372): InfoNCE of queries without and with demonstrations.

    `demonstrations`: at most so many a query, drawn from none up; 0 trains without. `contrast_without` and
    `contrast_with` weigh these two; with `contrast_without = 0`, queries are trained with their demonstrations alone,
    none among the draws, as in bge-en-icl (arXiv 2409.15700). `distill_weight` adds a KL term towards the likenesses
    that `teacher` sees between all texts of a batch at `distill_temperature`, `geometry_weight` the mean squared
    difference of the likenesses themselves. `teacher` is "contextual" (the frozen Contextual encoder), an encoder of
    ours, or `st:` and a sentence-transformers model. `text_distill_weight` adds a KL term from the scores under soft
    demonstrations towards the encoder's own under the same ones as texts, which costs a third pass over the queries
    (xRAG trains its projector so, arXiv 2405.13792).
    `label_weight` scales the loss of label batches. `half_weight` adds, for pooling "concat", the losses of the
    Contextual and of the EOS half by themselves.
    """

    temperature: float = Field(0.02, gt=0)
    demonstrations: int = Field(5, ge=0)
    contrast_without: float = Field(1.0, ge=0)
    contrast_with: float = Field(1.0, ge=0)
    stop_gradient: bool = False
    false_negative_margin: float | None = Field(0.1, ge=0)
    teacher: str = "contextual"
    distill_weight: float = Field(0.0, ge=0)
    text_distill_weight: float = Field(0.0, ge=0)
    distill_temperature: float = Field(0.05, gt=0)
    geometry_weight: float = Field(0.0, ge=0)
    label_weight: float = Field(1.0, gt=0)
    half_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "Objective":
        if not self.demonstrations and self.text_distill_weight:
            raise ValueError("text_distill_weight is about demonstrations, and demonstrations is 0; raise it")
        if not (self.without_used or (self.demonstrations and (self.contrast_with or self.text_distill_weight))):
            raise ValueError(
                "no loss is left: contrast_without is 0, and so is demonstrations or contrast_with; raise one of them"
            )
        return self

    @property
    def taught(self) -> bool:
        """Whether the loss asks a teacher."""
        return self.distill_weight > 0 or self.geometry_weight > 0

    @property
    def without_used(self) -> bool:
        """Whether the loss is also about queries without demonstrations."""
        return self.contrast_without > 0 or self.taught


class Optimizer(StrictModel):
    """AdamW with linear warm-up, then a linear fall to `final_fraction` of the rate; projectors have their own rate.

    Adam moves every weight of a projector by about the rate at each step, and hundreds of them meet in one output:
    at 1e-3 the tokens grow a hundredfold within 200 steps and all look alike. `token_budget` tokens are encoded at a
    time; with `gradient_cache` (arXiv 2101.06983) the memory of a step is bounded by that and not by the batch, and
    everything is encoded twice.
    """

    steps: int = Field(..., ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(2e-4, gt=0)
    projector_learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(30, ge=0)
    final_fraction: float = Field(0.1, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    token_budget: int = Field(8192, ge=64)
    gradient_cache: bool = False


class Recipe(StrictModel):
    """A training run. `start` continues from a checkpoint (its configuration counts); `[encoder]` starts afresh."""

    name: str
    seed: int = 7
    start: str | None = None
    encoder: EncoderConfig | None = None
    data: Data
    objective: Objective = Objective()
    optimizer: Optimizer
    checkpoint_steps: int = Field(50, ge=1)

    @model_validator(mode="after")
    def _one_beginning(self) -> "Recipe":
        if (self.start is None) == (self.encoder is None):
            raise ValueError("give exactly one of start (a checkpoint to continue from) and an [encoder] table")
        return self

    @model_validator(mode="after")
    def _a_teacher(self) -> "Recipe":
        alone = self.encoder is not None and self.encoder.contextual is None
        if self.objective.taught and self.objective.teacher == CONTEXTUAL and alone:
            raise ValueError(
                "objective.teacher is 'contextual', and [encoder] has no Contextual encoder; name another teacher or "
                "set distill_weight and geometry_weight to 0"
            )
        return self


def require_soft(objective: Objective, encoder: EncoderConfig) -> None:
    """Raise UserError where a text encoder is to learn from text demonstrations what it is trained on anyway."""
    if objective.text_distill_weight and encoder.demonstrations != "soft":
        raise UserError(
            "objective.text_distill_weight teaches soft demonstrations, and the demonstrations of this encoder are "
            f"'{encoder.demonstrations}'; take it out, or train an encoder whose demonstrations are 'soft'"
        )


def load(path: Path) -> Recipe:
    """Read and check a recipe; raises UserError with the file and the place of the first mistake."""
    files = _chain(path)
    recipe: dict[str, Any] = {}
    for table in reversed(files.values()):
        recipe = _merged(recipe, table)
    try:
        return Recipe.model_validate(recipe)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        guilty = max(files, key=lambda file: _known(files[file], place))
        raise UserError(f"the recipe {guilty} is wrong at {first_problem(error)}") from error


def _chain(path: Path) -> dict[Path, dict[str, Any]]:
    """A recipe and those it extends, nearest first, without the key that says so."""
    files = {path: read_toml(path, what="recipe")}
    while (base := files[path].pop("extends", None)) is not None:
        if not isinstance(base, str) or not (path.parent / base).is_file():
            raise UserError(f"the recipe {path} extends {base!r}, which is no file in {path.parent}; name one there")
        path = path.parent / base
        if path.resolve() in map(Path.resolve, files):
            raise UserError(f"a recipe cannot extend itself: {' -> '.join(map(str, [*files, path]))}")
        files[path] = read_toml(path, what="recipe")
    return files


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    tables = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | tables


def _known(table: Any, place: Sequence[str | int]) -> int:
    """How many steps of the way to a place exist in a file."""
    for taken, step in enumerate(place):
        try:
            table = table[step]
        except (KeyError, IndexError, TypeError):
            return taken
    return len(place)


def expand(patterns: str | list[str]) -> list[Path]:
    """The files of globs, with ${NAME} and ${NAME:-default} replaced from the environment.

    EPIC_SEARCH_DATA has a default of its own, so that recipes can name it plainly. Raises UserError for a glob without
    files and for a variable that is not set.
    """
    return [path for pattern in ([patterns] if isinstance(patterns, str) else patterns) for path in _glob(pattern)]


def _glob(pattern: str) -> list[Path]:
    path = Path(re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", _variable, pattern)).expanduser()
    root = Path(path.anchor) if path.is_absolute() else Path()
    files = sorted(root.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))
    if not files:
        advice = f"set {DATA_VARIABLE} or correct the path" if DATA_VARIABLE in pattern else "correct the path"
        where = "" if path.is_absolute() else f" from {Path.cwd()}"
        raise UserError(f"no file matches {path}{where}; {advice}")
    return files


def _variable(match: re.Match[str]) -> str:
    name, fallback = match[1], match[2]
    default = DEFAULT_DATA if name == DATA_VARIABLE else None
    found = os.environ.get(name, fallback if fallback is not None else default)
    if found is None:
        raise UserError(f"{match[0]} names the environment variable {name}, which is not set")
    return found
