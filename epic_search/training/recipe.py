"""Recipes: TOML files that say everything about a training run, checked before anything is loaded."""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from epic_search.encoder.config import EncoderConfig, StrictModel, load_toml
from epic_search.errors import UserError
from epic_search.training.dev import Dev

DATA_VARIABLE = "EPIC_SEARCH_DATA"
DEFAULT_DATA = "../shared/data"


class PairData(StrictModel):
    """Pairs {task, query, positive, negatives}: JSONL files, a `datasets` data set, or the standard library.

    Exactly one of `files`, `dataset` and `builtin` says where they come from.
    """

    files: str | list[str] | None = Field(
        None,
        description="JSONL files (.gz too) of pairs: globs, in which ${NAME} and ${NAME:-default} stand for variables "
        f"of the environment; {DATA_VARIABLE} is {DEFAULT_DATA} where it is not set.",
    )
    dataset: str | None = Field(None, description="A data set for the `datasets` library: a hub id or a local folder.")
    subset: str | None = Field(None, description="The part of `dataset` to load, where it has several.")
    split: str = Field("train", description="The split of `dataset` to load.")
    columns: dict[Literal["query", "positive", "negatives", "task"], str] = Field(
        {}, description="What the rows call our columns, where they call them otherwise: our name = theirs."
    )
    builtin: Literal["python-stdlib"] | None = Field(
        None,
        description="Pairs that every machine has: docstrings and signatures of the installed Python's standard "
        "library, to try a recipe without any files.",
    )
    task: str | None = Field(
        None, description="The instruction for rows that carry none: what a query asks for, in one sentence."
    )
    limit: int | None = Field(
        None, ge=2, description="Take only the first so many pairs of each source; by default all of them."
    )
    weight: float = Field(
        1.0, gt=0, description="Factor on how often these sources are drawn, on top of `data.temperature`."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "PairData":
        given = [key for key in ("files", "dataset", "builtin") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of files, dataset and builtin, not {' and '.join(given) or 'none'}")
        return self


class LabelData(StrictModel):
    """Texts with several views of labels: JSONL files of {text, labels: {view: label or [labels]}}.

    Which relation between texts is meant can only be told from the instruction or, where that is dropped, from the
    demonstrations: this is where a model learns to read them.
    """

    files: str | list[str] = Field(
        description="JSONL files (.gz too) of labelled texts, as globs; variables as in `data.pairs.files`."
    )
    exclude_views: list[str] = Field([], description="Views that are not trained on.")
    views_per_batch: int = Field(
        3,
        ge=1,
        description="How many views of the same texts a batch mixes. Our choice: with several, texts that are alike in "
        "one view are negatives in another, so that the relation has to be read from the prompt.",
    )
    instruction_dropout: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Share of the views of a batch that lose their instruction. Our choice: in a first trial every "
        "task was named by its instruction, and true and shuffled demonstrations gave the same vectors; where no "
        "instruction is left, only demonstrations tell what is asked.",
    )
    weight: float = Field(
        1.0, gt=0, description="Factor on how often these sources are drawn, on top of `data.temperature`."
    )


class Data(StrictModel):
    """What a run learns from. A step draws one source, with probability weight * size**`temperature`."""

    pairs: list[PairData] = []
    labels: list[LabelData] = []
    temperature: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Exponent on the size of a source in its share of the steps: 1 draws by size, 0 all alike. Our "
        "choice: the square root keeps large sources from filling the run and small ones from being repeated.",
    )
    heldout: int = Field(
        0,
        ge=0,
        description="How many pairs to take out of the sources, evenly over all rows, and to measure on before and "
        "after the run. Pairs that share a text with them are not trained on either.",
    )
    negatives_per_query: int = Field(
        1,
        ge=0,
        description="Hard negatives of a pair that a step draws, at most. Published: LLM2Vec (arXiv 2404.05961) trains "
        "with 1, bge-en-icl (arXiv 2409.15700) with 7.",
    )
    max_length: int = Field(
        128,
        ge=8,
        description="Tokens of a text that training reads; `encoder.max_length` is what users' texts are cut at. Our "
        "choice, for speed: LLM2Vec (arXiv 2404.05961) trains on 512.",
    )
    instruction_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of a batch's queries that lose their instruction, and so learn to do without. Our choice: a "
        "tenth, so that instructions are learned, too.",
    )

    @model_validator(mode="after")
    def _something(self) -> "Data":
        if not self.pairs and not self.labels:
            raise ValueError("there is nothing to learn from: add [[data.pairs]] or [[data.labels]]")
        return self


class Objective(StrictModel):
    """The EPIC objective (arXiv 2605.01372, as reconstructed): InfoNCE without and with soft demonstrations."""

    temperature: float = Field(
        0.02,
        gt=0,
        description="What cosines are divided by in InfoNCE: the lower, the more the hardest negatives count. "
        "Published: 0.02 in bge-en-icl (arXiv 2409.15700) and LLM2Vec (arXiv 2404.05961); EPIC's own is not published "
        "in what we could read.",
    )
    demonstrations: int = Field(
        5,
        ge=0,
        description="Most demonstrations of a query in the second pass, drawn anew for each query from 0 up to this; 0 "
        "trains without them. Published: 0 to 5 other pairs of the batch in bge-en-icl (arXiv 2409.15700).",
    )
    stop_gradient: bool = Field(
        False,
        description="Whether gradients end at the vectors that demonstrations are made of. EPIC's way is not "
        "published in what we could read. Our choice: they flow, so that vectors learn to be good demonstrations, too.",
    )
    false_negative_margin: float | None = Field(
        0.1,
        ge=0,
        description="A candidate that scores above the positive by more than this is taken for a false negative and "
        "left out; 2 leaves none out, since cosines differ by no more. Published: 0.1 in Qwen3-Embedding "
        "(arXiv 2506.05176).",
    )
    distill_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a KL term towards the in-batch scores of the frozen Contextual encoder, on batches of "
        "pairs. Our choice: off; it helps where few steps must do, and ties the result to that encoder.",
    )
    distill_temperature: float = Field(
        0.05,
        gt=0,
        description="What the cosines of both are divided by in the KL term. Our choice: above that of InfoNCE, so "
        "that more than the nearest passages count.",
    )
    label_weight: float = Field(
        1.0,
        gt=0,
        description="Factor on the loss of label batches. Our choice: none, until a comparison says otherwise.",
    )
    half_weight: float = Field(
        0.0,
        ge=0,
        description="For encoder.pooling = 'concat': weight of further losses of the Contextual and of the EOS half, "
        "each ranking by itself. Our choice: off; without it the Contextual half, good from the first step, leaves the "
        "EOS half little to learn.",
    )


class Optimizer(StrictModel):
    """AdamW with linear warm-up, then a linear fall; projectors have a learning rate of their own."""

    steps: int = Field(ge=1, description="Steps of the run. Published: 1,000 in LLM2Vec (arXiv 2404.05961).")
    batch_size: int = Field(
        64,
        ge=2,
        description="Queries of a step; the others' positives are a query's negatives. Our choice, for two CPU cores: "
        "LLM2Vec (arXiv 2404.05961) and, for retrieval, bge-en-icl (arXiv 2409.15700) take 512.",
    )
    learning_rate: float = Field(
        2e-4,
        gt=0,
        description="Peak learning rate of the LoRA layers. Published: 2e-4 in LLM2Vec (arXiv 2404.05961), 1e-4 in "
        "bge-en-icl (arXiv 2409.15700).",
    )
    projector_learning_rate: float = Field(
        1e-4,
        gt=0,
        description="Peak learning rate of the projectors. Our choice: Adam moves every weight of a projector by about "
        "the rate at each step, and hundreds of them meet in one output; at 1e-3 soft tokens grew a hundredfold within "
        "200 steps and all looked alike.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay of AdamW. Our choice: none, for the little that is trained."
    )
    warmup_steps: int = Field(
        30,
        ge=0,
        description="Steps over which the learning rates rise from zero. Our choice, for runs of a few hundred steps: "
        "LLM2Vec (arXiv 2404.05961) takes 300 of 1,000.",
    )
    final_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the peak rates that is left at the last step. Our choice: enough for the last steps to "
        "count.",
    )
    clip_norm: float = Field(
        1.0,
        gt=0,
        description="Gradients of a greater norm, over all parameters, are scaled down to it. Our choice: the usual 1, "
        "against single odd batches.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the frozen weights and of activations; what trains is float32 always. auto takes "
        "bfloat16 where the hardware multiplies it fast.",
    )
    token_budget: int = Field(
        8192,
        ge=64,
        description="Tokens that are encoded at a time, padding included: the lower, the less memory a step with "
        "`gradient_cache` takes. What is learned does not depend on it. Our choice: fits two cores and a few GB.",
    )
    gradient_cache: bool = Field(
        False,
        description="GradCache (arXiv 2101.06983): everything is encoded twice, and a step's memory is bounded by "
        "`token_budget` instead of growing with the batch; gradients are the same. Our choice: off, since small "
        "batches fit and are faster without.",
    )


class Recipe(StrictModel):
    """A training run: exactly one of `start` and the table `[encoder]` says where it begins."""

    name: str = Field(description="Name of the run and of the encoder it makes.")
    seed: int = Field(7, description="Decides on batches, demonstrations and fresh weights. Our choice: any will do.")
    start: str | None = Field(
        None,
        description="A checkpoint to continue from, by registry name, folder or hub id; its configuration counts.",
    )
    encoder: EncoderConfig | None = None
    data: Data
    objective: Objective = Objective()
    optimizer: Optimizer
    dev: Dev | None = None
    checkpoint_steps: int = Field(
        50,
        ge=1,
        description="Steps between checkpoints: at most so many are lost when a run is killed. Our choice: minutes, on "
        "a CPU.",
    )

    @model_validator(mode="after")
    def _one_beginning(self) -> "Recipe":
        if (self.start is None) == (self.encoder is None):
            raise ValueError("give exactly one of start (a checkpoint to continue from) and an [encoder] table")
        return self

    @model_validator(mode="after")
    def _something_to_measure(self) -> "Recipe":
        if self.dev is not None and not self.dev.tasks and not (self.dev.heldout and self.data.heldout):
            raise ValueError("[dev] has nothing to measure: add tasks, or hold pairs out with data.heldout")
        return self


def load(path: Path) -> Recipe:
    """Read and check a recipe; raises UserError with the place of the first mistake."""
    return load_toml(path, Recipe, what="recipe")


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
