"""Everything besides the weights that defines a vector.

`EncoderConfig` is what a checkpoint's `encoder.json` holds and what a recipe's `[encoder]` table says.
Together with the digests of the weights it makes the fingerprint (see `checkpoint.py`).
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from epic_search.encoder.prompt import DemonstrationKind, Markers
from epic_search.errors import UserError

FORMAT = 1
CONFIG_FILE = "encoder.json"
PROJECTORS_FILE = "projectors.safetensors"
RESULT = "encoder"  # where the folder of a training run has its checkpoint
LORA_FOLDER, CONTEXTUAL_LORA_FOLDER = "lora", "contextual_lora"  # of the backbone and of the Contextual encoder
BACKBONE_FOLDER, CONTEXTUAL_FOLDER = "backbone", "contextual"  # of checkpoints that hold these weights themselves
# The names of peft, so that its tools read the folder too.
LORA_WEIGHTS = "adapter_model.safetensors"
LORA_CONFIG = "adapter_config.json"


TrainedBackbone = Literal["frozen", "layers", "all"]
"""Which of a backbone's own weights are trained: none, all but the token embeddings, or all."""


Widths = Annotated[
    list[Annotated[int, Field(ge=2)]], Field(min_length=1), AfterValidator(lambda widths: sorted(set(widths)))
]


class StrictModel(BaseModel):
    """A wrong key is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSettings(StrictModel):
    """Low-rank adapters on linear layers, through peft."""

    rank: int = Field(
        16,
        ge=1,
        description="Rank of the update of a layer. Published: 16 in LLM2Vec (arXiv 2404.05961), 64 in bge-en-icl "
        "(arXiv 2409.15700).",
    )
    alpha: int = Field(
        32,
        ge=1,
        description="The update is multiplied by alpha / rank. Published: 32 in LLM2Vec (arXiv 2404.05961) and in "
        "bge-en-icl (arXiv 2409.15700).",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of an adapter's inputs that training sets to zero. Our choice: none, since runs are short; "
        "LLM2Vec (arXiv 2404.05961) takes 0.05.",
    )
    targets: str | list[str] = Field(
        "all-linear",
        description="The layers that get an adapter, by name. Published: all seven linear layers of a block in LLM2Vec "
        "(arXiv 2404.05961).",
    )


class ContextualConfig(StrictModel):
    """The Contextual token (Causal2Vec, arXiv 2507.23386): a small bidirectional encoder reads the whole text first."""

    encoder: str = Field(
        description="The small BERT or MPNet model that reads the text, by name, folder or hub id; its weights stay "
        "frozen. Which one the paper uses is not published in what we could read."
    )
    max_length: int = Field(
        256,
        ge=8,
        description="Tokens of a text that it reads, at most. Our choice: what all-MiniLM-L6-v2 is used with.",
    )
    position: Literal["after_prefix", "before_prefix"] = Field(
        "after_prefix",
        description="Where the token stands: right before the text's own tokens, or before the instruction. Not "
        "published in what we could read. Our choice: after the prefix, so that the constant part of a prompt stays "
        "the same for every text and can be computed once.",
    )
    projector: Literal["linear", "mlp"] = Field(
        "mlp",
        description="What maps the encoder's vector to an input token; mlp is Linear-GELU-Linear. Our choice: xRAG "
        "(arXiv 2405.13792) maps embeddings into a frozen model with one.",
    )
    gain: float = Field(
        1.0,
        gt=0,
        description="Norm of the token at the start, in units of the mean token-embedding norm. Our choice: that of an "
        "ordinary token.",
    )
    residual: bool = Field(
        False,
        exclude_if=lambda residual: not residual,
        description="Whether embeddings are the encoder's own vectors, as wide as these, with what a map of the pooled "
        "states adds to them, so that training starts from their quality (see `residual.py`). Our choice, in neither "
        "paper: few layers and steps lost more of it than they brought.",
    )
    lora: LoraSettings | None = Field(
        None,
        exclude_if=lambda lora: lora is None,
        description="Low-rank adapters on the Contextual encoder's linear layers, trained with everything else at "
        "optimizer.learning_rate: the losses reach them through the residual, the Contextual token and the soft "
        "tokens. Left out, that encoder stays as it is. Our choice: left out, since a step then has its backward pass, "
        "too; but an encoder that adds little to its Contextual vectors gets better only as they do.",
    )


class SoftTokenConfig(StrictModel):
    """How a demonstration's embedding becomes one input token (EPIC, arXiv 2605.01372)."""

    projector: Literal["identity", "rescale", "linear", "mlp"] = Field(
        "mlp",
        description="What maps an embedding to an input token: the vector itself, scaled to a token's norm, or a "
        "learned map; mlp is Linear-GELU-Linear. EPIC's is not published in what we could read. Our choice: as xRAG "
        "(arXiv 2405.13792), started so that lengths and angles survive; a linear map mostly works, too (Vector-ICL, "
        "arXiv 2410.05629).",
    )
    markers: Markers = Field(
        "words",
        exclude_if=lambda markers: markers == "words",
        description="What stands around the two tokens of a demonstration: the words that stand around texts, Query: "
        "and Response: (words), or nothing but a line's end (lines), 3 tokens a demonstration instead of 8 with "
        "SmolLM2's tokenizer. EPIC's template is not published in what we could read. Our choice: the places that "
        "bge-en-icl (arXiv 2409.15700) has for texts.",
    )


class EncoderConfig(StrictModel):
    """A backbone and what turns it into a text encoder.

    A key that a later version adds is left out where it has its default (`exclude_if`): encoders from before it keep
    their fingerprint, and older versions read what does without it.
    """

    format: int = Field(FORMAT, description="Version of this configuration's form; leave it out.")
    name: str = Field(description="Name of the encoder; in a recipe the recipe's own name takes its place.")
    backbone: str = Field(description="The decoder-only language model, by name, folder or hub id; it stays frozen.")
    layers: int | None = Field(
        None,
        ge=1,
        description="Keep only the first so many layers of the backbone, for speed. By default all of them.",
    )
    max_length: int = Field(
        512,
        ge=8,
        description="Tokens of a text itself that are read; prompts come on top and are never cut. Published: 512 in "
        "LLM2Vec (arXiv 2404.05961).",
    )
    pooling: Literal["last", "mean", "concat"] = Field(
        "last",
        description="What the embedding is: the last hidden state of the EOS token (last), the mean over the text's "
        "own tokens (mean), or Contextual and EOS states concatenated (concat, twice the backbone's width). Published: "
        "last in bge-en-icl (arXiv 2409.15700), concat in Causal2Vec (arXiv 2507.23386).",
    )
    contextual: ContextualConfig | None = None
    soft_tokens: SoftTokenConfig = SoftTokenConfig()
    lora: LoraSettings | None = None
    demonstrations: DemonstrationKind = Field(
        "soft",
        exclude_if=lambda kind: kind == "soft",
        description="What the encoder is trained to read as demonstrations: soft tokens (EPIC, arXiv 2605.01372) or "
        "texts (bge-en-icl, arXiv 2409.15700).",
    )
    matryoshka: Widths | None = Field(
        None,
        exclude_if=lambda widths: widths is None,
        description="Widths, besides the whole, that vectors were trained to be cut to (see `matryoshka.py`). A recipe "
        "says objective.matryoshka instead.",
    )
    dim: int | None = Field(
        None,
        ge=2,
        exclude_if=lambda dim: dim is None,
        description="The width that vectors are cut to. Not for a recipe: `--dim` of index and eval.",
    )

    @model_validator(mode="after")
    def _check(self) -> "EncoderConfig":
        if self.format > FORMAT:
            raise ValueError(
                f"format {self.format} is newer than {FORMAT}, the newest this version reads; update epic-search"
            )
        if self.pooling == "concat" and self.contextual is None:
            raise ValueError("pooling 'concat' joins the Contextual and EOS states, so it needs a [contextual] table")
        if self.pooling == "concat" and self.soft_tokens.projector in ("identity", "rescale"):
            raise ValueError(
                f"soft_tokens.projector '{self.soft_tokens.projector}' needs embeddings as wide as the backbone, "
                "and pooling 'concat' makes them twice as wide; use 'linear' or 'mlp'"
            )
        return self

    @property
    def adapters(self) -> dict[str, LoraSettings]:
        """The adapters of the backbone and of the Contextual encoder, if any, by their folders in a checkpoint."""
        found = {LORA_FOLDER: self.lora, CONTEXTUAL_LORA_FOLDER: self.contextual.lora if self.contextual else None}
        return {name: settings for name, settings in found.items() if settings is not None}

    def base_of(self, adapter: str) -> str:
        """What the adapter of a folder in a checkpoint is added to, as the configuration calls it."""
        return self.backbone if adapter == LORA_FOLDER or self.contextual is None else self.contextual.encoder

    def save(self, folder: Path) -> None:
        """Write `encoder.json` into the folder."""
        (folder / CONFIG_FILE).write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "EncoderConfig":
        """Read `encoder.json`; raises UserError when it is not a valid configuration."""
        path = folder / CONFIG_FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not an encoder configuration: {first_problem(error)}") from error


Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path, model: type[Model], *, what: str) -> Model:
    """Read and check a TOML file, called `what` in messages; raises UserError with the place of the first mistake."""
    try:
        return model.model_validate(read_toml(path, what=what))
    except ValidationError as error:
        raise UserError(f"the {what} {path} is wrong at {first_problem(error)}") from error


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """The content of a TOML file, called `what` in messages; raises UserError when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"the {what} {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the {what} {path} is not valid TOML: {error}") from error


def first_problem(error: ValidationError | UnicodeDecodeError) -> str:
    """The first thing pydantic found wrong, in one line, with the place it stands at."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
