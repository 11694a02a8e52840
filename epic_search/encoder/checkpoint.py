"""Encoders on disk: find one by name, read and write its folder, and say what exactly it is (the fingerprint).

A checkpoint folder holds `encoder.json`, `projectors.safetensors` and, in peft's own format, `lora/` and
`contextual_lora/`, where the backbone and the Contextual encoder have adapters. It names these two models, without a
copy of their weights, or holds them itself: a name that begins with "./" is a folder in the checkpoint's own (see
`export.py`).
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from epic_search.encoder import weights
from epic_search.encoder.config import (
    CONFIG_FILE,
    CONTEXTUAL_LORA_FOLDER,
    LORA_CONFIG,
    LORA_FOLDER,
    LORA_WEIGHTS,
    PROJECTORS_FILE,
    RESULT,
    EncoderConfig,
)
from epic_search.encoder.prompt import TEMPLATE
from epic_search.errors import UserError

DEFAULT_MODEL = "epic-mini"

OWN = "./"
"""How `encoder.json` begins the name of a folder that lies in the checkpoint itself."""

_PACKAGED = Path(__file__).parent.parent / "models"


def registry() -> dict[str, Path]:
    """The named encoders that come with epic-search: name -> checkpoint folder."""
    return {path.parent.name: path.parent for path in sorted(_PACKAGED.glob(f"*/{CONFIG_FILE}"))}


@dataclass(frozen=True)
class Checkpoint:
    """A resolved encoder: its configuration and the folders its weights come from.

    `reference` leads back to it: a registry name, an absolute folder or a hub id. `folder` is None for a plain language
    model without training of ours.
    """

    reference: str
    config: EncoderConfig
    folder: Path | None
    backbone: Path
    contextual: Path | None

    @property
    def lora(self) -> Path | None:
        """The folder of the backbone's LoRA weights, if this checkpoint has any."""
        return self.adapters.get(LORA_FOLDER)

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of the LoRA weights that this checkpoint has, by their names in it."""
        folders = {name: self.folder / name for name in (LORA_FOLDER, CONTEXTUAL_LORA_FOLDER)} if self.folder else {}
        return {name: folder for name, folder in folders.items() if (folder / LORA_WEIGHTS).is_file()}

    @property
    def holds_backbone(self) -> bool:
        """Whether the backbone's weights lie in this checkpoint itself: trained in full, or merged."""
        return self.folder is not None and self.backbone.is_relative_to(self.folder.resolve())

    def capped(self, max_length: int | None) -> "Checkpoint":
        """The same encoder reading at most `max_length` tokens of a text, with its Contextual encoder; None: itself."""
        if max_length is None:
            return self
        changes: dict[str, object] = {"max_length": min(max_length, self.config.max_length)}
        if self.config.contextual is not None:
            shorter = min(max_length, self.config.contextual.max_length)
            changes["contextual"] = self.config.contextual.model_copy(update={"max_length": shorter})
        return replace(self, config=self.config.model_copy(update=changes))

    @property
    def width(self) -> int:
        """Dimensions of a whole vector."""
        from epic_search.encoder.backbone import read_config

        if self.contextual is not None and self.config.contextual is not None and self.config.contextual.residual:
            context: int = read_config(self.contextual).hidden_size
            return context
        hidden: int = read_config(self.backbone).hidden_size
        return 2 * hidden if self.config.pooling == "concat" else hidden

    def truncated(self, dim: int | None) -> "Checkpoint":
        """The same encoder with vectors cut to their first `dim` dimensions; None: itself.

        Raises UserError for more dimensions than there are, and for a width that it was not trained for.
        """
        if dim is None:
            return self
        widths = [*(self.config.matryoshka or []), self.width]
        if dim not in widths:
            raise UserError(
                f"'{self.config.name}' was trained for vectors of {' or '.join(map(str, widths))} dimensions, and "
                f"{dim} were asked for; ask for one of these (objective.matryoshka in a recipe trains others)"
            )
        return replace(self, config=self.config.model_copy(update={"dim": dim if dim < self.width else None}))

    def fingerprint(self) -> str:
        """32 hex digits over the configuration, the template and every byte of weights and tokenizers.

        Not over names and places: a checkpoint that was moved is the same encoder. Nor over the defaults of
        settings that came later (see `EncoderConfig`), which change no encoder of before.
        """
        config = self.config.model_dump(exclude={"name": True, "backbone": True, "contextual": {"encoder"}})
        digest = hashlib.sha256(json.dumps([config, TEMPLATE], sort_keys=True).encode())
        contextual_lora = self.adapters.get(CONTEXTUAL_LORA_FOLDER)
        later = [contextual_lora] if contextual_lora else []  # came later, and must not change what is without
        for folder in (self.backbone, self.contextual, self.folder, self.lora, *later):
            digest.update(weights.digest(folder).encode() if folder else b"-")
            for name in ("config.json", "tokenizer.json", LORA_CONFIG):
                if folder and (folder / name).is_file():
                    digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
        return digest.hexdigest()[:32]


def find(reference: str) -> Checkpoint:
    """The checkpoint that a registry name, a folder or a hub id stands for; raises UserError when there is none.

    The folder of a training run stands for the encoder in it. A language model without `encoder.json` is an encoder
    too: untrained, pooled at the last token.
    """
    folder = registry().get(reference, Path(reference).expanduser())
    if not (folder / CONFIG_FILE).is_file() and (folder / RESULT / CONFIG_FILE).is_file():
        folder = folder / RESULT
        reference = str(folder)
    if reference not in registry() and folder.exists():
        reference = str(folder.resolve())
    if not (folder / CONFIG_FILE).is_file():
        try:
            folder = weights.resolve(reference)
        except UserError as error:
            raise UserError(f"{error} Named encoders: {', '.join(registry()) or 'none'}.") from error
    if not (folder / CONFIG_FILE).is_file():
        return of_config(plain_config(reference), reference=reference)
    config = _anchored(EncoderConfig.load(folder), folder)
    for name in [PROJECTORS_FILE, *(f"{adapter}/{LORA_WEIGHTS}" for adapter in config.adapters)]:
        if not (folder / name).is_file():
            raise UserError(f"the checkpoint {folder} is incomplete: it has no {name}; save or download it again")
    return of_config(config, reference=reference, folder=folder)


def plain_config(reference: str) -> EncoderConfig:
    """A language model as it is: last-token pooling, demonstrations as rescaled embeddings."""
    return EncoderConfig.model_validate(
        {"name": reference, "backbone": reference, "pooling": "last", "soft_tokens": {"projector": "rescale"}}
    )


def _anchored(config: EncoderConfig, folder: Path) -> EncoderConfig:
    """The configuration with names of the checkpoint's own folders made absolute, so that it can be used elsewhere."""

    def anchor(name: str) -> str:
        if not name.startswith(OWN):
            return name
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_dir():
            return str(path)
        if Path(name).is_dir():  # as in the recipe it was trained with, seen from the current folder
            return name
        raise UserError(f"the checkpoint {folder} is incomplete: it has no {name}; save or download it again")

    changes: dict[str, object] = {"backbone": anchor(config.backbone)}
    if config.contextual is not None:
        changes["contextual"] = config.contextual.model_copy(update={"encoder": anchor(config.contextual.encoder)})
    return config.model_copy(update=changes)


def of_config(config: EncoderConfig, *, reference: str, folder: Path | None = None) -> Checkpoint:
    """Resolve the weights that a configuration names."""
    contextual = weights.resolve(config.contextual.encoder) if config.contextual else None
    return Checkpoint(reference, config, folder, weights.resolve(config.backbone), contextual)
