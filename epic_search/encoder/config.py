"""Everything besides the weights that defines a vector.

`EncoderConfig` is what a checkpoint's `encoder.json` holds and what a recipe's `[encoder]` table says.
Together with the digests of the weights it makes the fingerprint (see `checkpoint.py`).
"""

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from epic_search.encoder.prompt import DemonstrationKind
from epic_search.errors import UserError

FORMAT = 1
CONFIG_FILE = "encoder.json"
PROJECTORS_FILE = "projectors.safetensors"
LORA_FOLDER = "lora"
# The names of peft, so that its tools read the folder too.
LORA_WEIGHTS = "adapter_model.safetensors"
LORA_CONFIG = "adapter_config.json"


class StrictModel(BaseModel):
    """A wrong key is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ContextualConfig(StrictModel):
    """The Contextual token (Causal2Vec, arXiv 2507.23386): a small bidirectional encoder reads the whole text first.

    `position`: right before the text's own tokens ("after_prefix", so that the constant prefix of a prompt stays the
    same for every text) or before the instruction ("before_prefix").
    `gain`: norm of the token at initialisation, in units of the mean token-embedding norm.
    `residual`: add the Contextual encoder's own vector to the pooled states (see `residual.py`).
    """

    encoder: str
    max_length: int = Field(256, ge=8)
    position: Literal["after_prefix", "before_prefix"] = "after_prefix"
    projector: Literal["linear", "mlp"] = "mlp"
    gain: float = Field(1.0, gt=0)
    residual: bool = Field(False, exclude_if=lambda residual: not residual)


class SoftTokenConfig(StrictModel):
    """How a demonstration's embedding becomes one input token (EPIC, arXiv 2605.01372)."""

    projector: Literal["identity", "rescale", "linear", "mlp"] = "mlp"


class LoraSettings(StrictModel):
    """Low-rank adapters on the backbone's linear layers, through peft."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"


class EncoderConfig(StrictModel):
    """A backbone and what turns it into a text encoder.

    `max_length` bounds the tokens of a text itself; prompts come on top and are never cut.
    `pooling`: last hidden state of the EOS token ("last"), mean over the text's tokens ("mean"), or Contextual and EOS
    states concatenated ("concat", Causal2Vec: twice the backbone's width).
    `demonstrations`: what it is trained to read, soft tokens (EPIC) or texts (bge-en-icl, arXiv 2409.15700).

    A key that a later version adds is left out where it has its default (`exclude_if`): encoders from before it keep
    their fingerprint, and older versions read what does without it.
    """

    format: int = FORMAT
    name: str
    backbone: str
    layers: int | None = Field(None, ge=1)
    max_length: int = Field(512, ge=8)
    pooling: Literal["last", "mean", "concat"] = "last"
    contextual: ContextualConfig | None = None
    soft_tokens: SoftTokenConfig = SoftTokenConfig()
    lora: LoraSettings | None = None
    demonstrations: DemonstrationKind = Field("soft", exclude_if=lambda kind: kind == "soft")

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
