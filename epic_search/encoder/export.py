"""Exports: an encoder as a folder for others, with a model card, there whole or not at all.

merged                  a checkpoint of ours that holds everything: the layers that are used, with LoRA merged, the
                        Contextual encoder, tokenizers and projectors; float32, so that nothing is rounded
adapter                 what was trained, as saved: LoRA layers, projectors and the names of the other weights
sentence-transformers   what `SentenceTransformer(FOLDER)` loads: its own modules where they can express the encoder,
                        else a merged checkpoint with a module of ours
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from epic_search import __version__
from epic_search.encoder import card, checkpoint
from epic_search.encoder.backbone import save_model
from epic_search.encoder.checkpoint import OWN, Checkpoint
from epic_search.encoder.config import BACKBONE_FOLDER, CONFIG_FILE, CONTEXTUAL_FOLDER, PROJECTORS_FILE
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder.encoder import Encoder

Format = Literal["merged", "adapter", "sentence-transformers"]

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class Export:
    """A finished export.

    `source`: fingerprint of the encoder that was exported; `fingerprint`: of the one in the folder, None where only
    sentence-transformers reads it.
    """

    folder: Path
    name: str
    format: Format
    size: int
    source: str
    fingerprint: str | None


def export(reference: str | Path, *, out: Path, format: Format, overwrite: bool = False) -> Export:
    """Write the encoder that `reference` means into the folder `out`.

    `overwrite` replaces an earlier export, and nothing else. Raises UserError when there is no such encoder, when it
    cannot take that form, when `out` is in use and when it cannot be written.
    """
    if format not in get_args(Format):
        raise UserError(f"format '{format}' is not one of {', '.join(get_args(Format))}")
    found = checkpoint.find(str(reference))
    found = replace(found, config=found.config.model_copy(update={"name": _public_name(found.config.name)}))
    out = out.expanduser().absolute()
    _check_out(out, found, overwrite=overwrite)
    if format == "adapter":
        _check_adapter(found)
    if format == "sentence-transformers":
        _check_package()
    source = found.fingerprint()

    def write(folder: Path) -> None:
        standalone = _write(found, folder, format)
        (folder / card.FILE).write_text(card.text(found, format=format, standalone=standalone), encoding="utf-8")
        facts = {"format": format, "name": found.config.name, "source": source, "epic_search": __version__}
        note = folder / EXPORT_FILE
        note.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for file in folder.rglob("*.safetensors"):  # which safetensors writes for the user's eyes only
            file.chmod(note.stat().st_mode)

    _replace(out, write)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    loadable = (out / CONFIG_FILE).is_file()
    fingerprint = checkpoint.find(str(out)).fingerprint() if loadable else None
    return Export(out, found.config.name, format, size, source, fingerprint)


def is_export(folder: Path) -> bool:
    """Whether `export` wrote this folder."""
    return (folder / EXPORT_FILE).is_file()


def write_merged(encoder: "Encoder", folder: Path) -> None:
    """Write a loaded encoder, LoRA weights merged, as a checkpoint that needs nothing besides its folder."""
    from safetensors.torch import save_file

    found, model = encoder.checkpoint, encoder.model
    name = _public_name(encoder.name)
    changes: dict[str, object] = {"name": name, "backbone": OWN + BACKBONE_FOLDER, "layers": None, "lora": None}
    save_model(model.backbone, folder / BACKBONE_FOLDER, source=found.backbone)
    if model.contextual is not None:
        assert found.contextual is not None and encoder.config.contextual is not None
        save_model(model.contextual.model, folder / CONTEXTUAL_FOLDER, source=found.contextual)
        merged = {"encoder": OWN + CONTEXTUAL_FOLDER, "lora": None}
        changes["contextual"] = encoder.config.contextual.model_copy(update=merged)
    encoder.config.model_copy(update=changes).save(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.projectors().items()}
    save_file(state, folder / PROJECTORS_FILE)


def _public_name(name: str) -> str:
    """An encoder's name for others: a language model is called by its folder here, whose place concerns nobody."""
    return Path(name).name if Path(name).is_absolute() else name


def _write(found: Checkpoint, folder: Path, format: Format) -> bool:
    """Fill the folder; whether sentence-transformers reads it without epic-search."""
    if format == "adapter":
        _copy_adapter(found, folder)
        return False
    from epic_search.encoder.encoder import Encoder

    encoder = Encoder.load(found.reference, device="cpu", dtype="float32")
    if format == "merged":
        write_merged(encoder, folder)
        return False
    from epic_search.encoder import sentence_transformers

    return sentence_transformers.write_folder(encoder, folder)


def _copy_adapter(found: Checkpoint, folder: Path) -> None:
    assert found.folder is not None
    for name in (CONFIG_FILE, PROJECTORS_FILE):
        shutil.copyfile(found.folder / name, folder / name)
    for name, adapter in found.adapters.items():
        (folder / name).mkdir()
        for file in sorted(adapter.iterdir()):
            if file.suffix in (".json", ".safetensors"):
                shutil.copyfile(file, folder / name / file.name)


def _check_adapter(found: Checkpoint) -> None:
    """Raise UserError where the backbone is all there is, or a part of the checkpoint."""
    if found.folder is None:
        raise UserError(f"'{found.reference}' is a language model without training of ours; use --format merged")
    if found.holds_backbone:
        raise UserError(f"{found.folder} holds its backbone itself and has no adapter to export; use --format merged")


def _check_package() -> None:
    """Raise UserError without a sentence-transformers whose modules are those that are written."""
    try:
        installed = version("sentence-transformers")
    except PackageNotFoundError:
        installed = "none"
    if not installed.partition(".")[0].isdigit() or int(installed.partition(".")[0]) < 6:
        raise UserError(
            f"this format needs sentence-transformers 6 or later, and {installed} is installed; "
            "pip install -U sentence-transformers, or use --format merged"
        )


def _check_out(out: Path, found: Checkpoint, *, overwrite: bool) -> None:
    """Raise UserError unless `out` is free, or an earlier export that may be replaced and is not being read."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out.exists() or out.is_symlink()):
        return
    if not (out.is_dir() and is_export(out)):
        raise UserError(f"{out} exists and is no export of epic-search; choose another folder with --out")
    if not overwrite:
        raise UserError(f"{out} already holds an export; replace it with --overwrite, or choose another --out")
    for folder in (found.folder, found.backbone, found.contextual):
        if folder is not None and folder.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out} holds the encoder that is being exported; choose another folder with --out")


def _replace(out: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder beside `out`, then put it in its place."""
    fresh = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        fresh.mkdir(parents=True)
        write(fresh)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    except OSError as error:
        # Between the two renames a failure must not cost the earlier export.
        if old.exists() and not out.exists():
            with suppress(OSError):
                old.rename(out)
        raise UserError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
