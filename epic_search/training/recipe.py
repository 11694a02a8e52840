"""Recipes: TOML files that say everything about a training run, checked before anything is loaded.

A recipe that begins with `extends = "FILE"` (beside it) says only what is different from that one: its tables are
merged into the other's, key by key, and everything else, lists among it, takes the other's place.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from epic_search.encoder.config import EncoderConfig, StrictModel, TrainedBackbone, Widths
from epic_search.training.dev import Dev

DATA_VARIABLE = "EPIC_SEARCH_DATA"
DEFAULT_DATA = "../shared/data"
CONTEXTUAL = "contextual"  # as a teacher: the encoder's own Contextual encoder


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
    """The EPIC objective (arXiv 2605.01372, as reconstructed): InfoNCE of queries without and with demonstrations."""

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
    contrast_without: float = Field(
        1.0,
        ge=0,
        description="Weight of the loss of queries without demonstrations. At 0 queries are trained with theirs alone, "
        "none among the draws. Published: 0 in effect in bge-en-icl (arXiv 2409.15700). Our choice: 1, so that an "
        "encoder is good without them, too.",
    )
    contrast_with: float = Field(
        1.0,
        ge=0,
        description="Weight of the loss of queries with demonstrations. Our choice: that of the loss without.",
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
    teacher: str = Field(
        CONTEXTUAL,
        description="Whose likenesses of texts are followed: 'contextual' (the frozen Contextual encoder), an encoder "
        "of ours, or `st:` and a sentence-transformers model. Our choice: the one that is there anyway.",
    )
    distill_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a KL term towards the teacher's likenesses between all texts of a batch. Our choice: "
        "off; it keeps what a teacher knows of texts that the training data says nothing about.",
    )
    geometry_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the mean squared difference between the cosines of the encoder and of the teacher, over "
        "all texts of a batch: far ones count as much as near ones. Our choice: off; squares of cosines are small, so "
        "a weight of 10 to 30 makes it the equal of the KL term.",
    )
    text_distill_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a KL term from the scores under soft demonstrations towards the encoder's own under the "
        "same ones as texts, at the cost of a third pass over the queries. Published: xRAG trains its projector in "
        "this way (arXiv 2405.13792). Our choice: off, until a comparison says otherwise.",
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
        description="Factor on the losses of label batches, but for the teacher's. Our choice: none, until a "
        "comparison says otherwise.",
    )
    half_weight: float = Field(
        0.0,
        ge=0,
        description="For encoder.pooling = 'concat': weight of further losses of the Contextual and of the EOS half, "
        "each ranking by itself. Our choice: off; without it the Contextual half, good from the first step, leaves the "
        "EOS half little to learn.",
    )
    matryoshka: Widths | None = Field(
        None,
        description=(
            "Widths, besides the whole, at which the contrastive losses are computed too, of the first dimensions of "
            "each vector (Matryoshka representation learning, arXiv 2205.13147); their mean is the loss. A smaller "
            "index then costs little quality: `--dim` of index and eval. With pooling 'concat' the dimensions of both "
            "halves are put in turn, so that a prefix has its share of each. Left out: the widths of the checkpoint "
            "that the run starts from."
        ),
    )

    @property
    def taught(self) -> bool:
        """Whether the loss asks a teacher."""
        return self.distill_weight > 0 or self.geometry_weight > 0

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "Objective":
        contrast = self.contrast_without + (self.contrast_with if self.demonstrations else 0.0)
        if not contrast and not self.taught:
            raise ValueError(
                "nothing is trained: contrast_without is 0 and so is demonstrations or contrast_with; raise one of them"
            )
        if not self.demonstrations and self.text_distill_weight:
            raise ValueError("text_distill_weight is about demonstrations, and demonstrations is 0; raise it")
        return self


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
        description="Peak learning rate of all LoRA layers, and of the backbone's own weights where these are trained. "
        "Published: 2e-4 in LLM2Vec (arXiv 2404.05961), 1e-4 in bge-en-icl (arXiv 2409.15700).",
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
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "Decay of an exponential moving average of the trained weights, which the finished encoder then has "
            "instead of the last step's. It takes the noise of single steps out, at the price of lagging behind by "
            "about 1 / (1 - ema) steps: 0.99 in a run of hundreds of steps, 0.999 in one of thousands. Left out: none."
        ),
    )
    backbone: TrainedBackbone = Field(
        "frozen",
        description=(
            "Which of the backbone's own weights are trained. 'frozen': none, only the LoRA layers (where there is an "
            "[encoder.lora] table) and the projectors, so that a checkpoint is small and the language model cannot be "
            "spoilt. 'layers': all but the token embeddings, which few tokens of a small data set would move apart "
            "from the rest. 'all': all. Trained weights are kept in float32 and take 16 bytes each with gradient and "
            "AdamW's two averages, and learning_rate should be about a tenth of what suits LoRA (2e-5, not 2e-4)."
        ),
    )


def _names_a_folder(name: str) -> str:
    if not re.fullmatch(r"[^./\\\0][^/\\\0]{0,99}", name):
        raise ValueError(
            f"{name!r} cannot name a run; use up to 100 characters, no '/' or '\\', and no '.' at the beginning"
        )
    return name


class Recipe(StrictModel):
    """A training run: exactly one of `start` and the table `[encoder]` says where it begins."""

    name: Annotated[str, AfterValidator(_names_a_folder)] = Field(
        description="Name of the run, of its folder in `runs`, and of the encoder it makes."
    )
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

    @model_validator(mode="after")
    def _widths_are_trained(self) -> "Recipe":
        if self.encoder is not None and (self.encoder.matryoshka or self.encoder.dim):
            raise ValueError("encoder.matryoshka and encoder.dim say what was trained; give objective.matryoshka")
        return self

    @model_validator(mode="after")
    def _one_way_to_train(self) -> "Recipe":
        if self.optimizer.backbone != "frozen" and self.encoder is not None and self.encoder.lora is not None:
            raise ValueError(
                f"optimizer.backbone = '{self.optimizer.backbone}' trains the weights that [encoder.lora] would add "
                "to; leave out one of them"
            )
        return self
