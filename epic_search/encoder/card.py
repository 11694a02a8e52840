"""Model cards: the README.md of an export, from what is known about a checkpoint.

A checkpoint's own card is carried along; without one, the recipe of the run it lies in says what it learned from.
"""

import json
import re
from pathlib import Path
from typing import Any

from epic_search.encoder.checkpoint import Checkpoint
from epic_search.encoder.config import CONTEXTUAL_LORA_FOLDER, LORA_FOLDER
from epic_search.encoder.weights import KNOWN, installed, is_hub_id

FILE = "README.md"
_PARTS = "## Parts and licences"
_RUN_RECIPE, _RUN_LOG = "recipe.json", "log.jsonl"
_UNKNOWN_TERMS = "not known to epic-search: look it up, and state it here before you publish"


def text(found: Checkpoint, *, format: str, standalone: bool) -> str:
    """The card of an export in one of the formats of `export.py`.

    `standalone`: whether sentence-transformers reads the folder without epic-search.
    """
    own = _own_card(found)
    sections = [
        f"# {found.config.name}",
        _description(found, format),
        "## How to load it",
        _loading(format, standalone=standalone, demonstrations=found.folder is not None),
        *([own[1]] if own and own[1].startswith(_PARTS) else [_PARTS, _parts(found, format)]),
        *([_CARRIED, own[1]] if own and not own[1].startswith(_PARTS) else []),
        *([] if own else _run_sections(found)),
    ]
    return f"---\n{_metadata(found, format, own[0] if own else {})}\n---\n\n" + "\n\n".join(sections) + "\n"


_CARRIED = (
    "## The card of the checkpoint\n\n"
    "As it stands in the checkpoint this was exported from; where it speaks of files, it means those of the checkpoint."
)

_TYPICAL_USE = (
    "Semantic search over texts like those it was trained on: passages are encoded without a prompt, queries under a "
    "task in one sentence. Measure it on your own data (`epic-search eval`) before you rely on it."
)


def _description(found: Checkpoint, format: str) -> str:
    from epic_search.encoder.backbone import read_config

    config = found.config
    used = read_config(found.backbone).num_hidden_layers if found.holds_backbone else config.layers
    layers = "all layers" if used is None else f"the first {used} layers"
    pooled = {
        "last": "the last hidden state of the end-of-sequence token",
        "mean": "the mean of the last hidden states of the text's tokens",
        "concat": "the last hidden states of the Contextual and the end-of-sequence token, concatenated",
    }[config.pooling]
    context = ""
    if config.contextual is not None and config.contextual.residual:
        pooled = f"the vector of {_name(config.contextual.encoder)}, with what a learned map of {pooled} adds to it"
    if config.contextual is not None:
        learnt = ", which has LoRA layers of its own," if config.contextual.lora else ""
        context = f" A Contextual token from {_name(config.contextual.encoder)}{learnt} gives it the whole text first."
    cuts = (
        f" They can be cut to their first {' or '.join(f'{width:,}' for width in config.matryoshka)} dimensions and "
        "brought to unit length again."
        if config.matryoshka
        else ""
    )
    holds = {
        "merged": "This folder holds all of it in float32, with LoRA weights merged, and needs no other weights.",
        "adapter": "This folder holds what was trained; the weights of the models named below come from elsewhere.",
        "sentence-transformers": "This folder holds all of it in float32, with LoRA weights merged.",
    }[format]
    return (
        f"A text encoder made with epic-search from {_name(_base(found))} ({layers}). Vectors have "
        f"{found.width:,} dimensions and unit length: {pooled}.{cuts} Texts are read up to {config.max_length:,} "
        f"tokens.{context} {holds}"
    )


def _loading(format: str, *, standalone: bool, demonstrations: bool) -> str:
    if format != "sentence-transformers":
        return (
            "With epic-search installed, by the folder or its id on the hub:\n\n"
            "```python\n"
            "from epic_search.encoder import Encoder\n\n"
            'encoder = Encoder.load("FOLDER")\n'
            "passages = encoder.encode_passages(texts)\n"
            'queries = encoder.encode_queries(questions, prompt=encoder.prompt(task="Find the text that answers it"))\n'
            "```\n\n"
            "or `epic-search index CORPUS.jsonl --encoder FOLDER`. An index belongs to one fingerprint: merged weights "
            "and adapter have different ones, though their vectors agree."
        )
    if standalone:
        return (
            "With sentence-transformers alone (6.0 or later):\n\n"
            "```python\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("FOLDER")\n'
            "queries, passages = model.encode_query(questions), model.encode_document(texts)\n"
            "```\n\n"
            "Queries and documents have tokenizers of their own, which put the words of the template around a text, so "
            "use these two methods. The weights are stored for each of them. Tasks and demonstrations are not "
            "available in this form; prompts are not needed and should not be given."
        )
    extra = ', demonstrations=[("a query", "its passage")]' if demonstrations else ""
    return (
        "With sentence-transformers (6.0 or later) and epic-search installed; `trust_remote_code` lets the class be "
        "taken from the installed epic-search; the folder itself holds no code:\n\n"
        "```python\n"
        "from sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("FOLDER", trust_remote_code=True)\n'
        "passages = model.encode_document(texts)\n"
        f'queries = model.encode_query(questions, prompt="Find the text that answers it"{extra})\n'
        "```\n\n"
        'The prompt is the task in one sentence. `epic_search.encoder.Encoder.load("FOLDER")` reads this folder too.'
    )


def _parts(found: Checkpoint, format: str) -> str:
    config = found.config
    rows = [("backbone", *_origin(_base(found), inside=format != "adapter"))]
    if config.contextual is not None:
        rows.append(("Contextual encoder", *_origin(config.contextual.encoder, inside=format != "adapter")))
    if found.folder is not None:
        models = {LORA_FOLDER: "the backbone", CONTEXTUAL_LORA_FOLDER: "the Contextual encoder"}
        adapted = " and ".join(model for name, model in models.items() if name in config.adapters)
        trained = f"LoRA layers of {adapted}, projectors" if adapted else "projectors"
        if _is_trained_whole(found):
            trained += " and the backbone's weights"
        where = "trained" if format == "adapter" or not adapted else f"trained, and merged into {adapted}"
        rows.append((trained, where, "see below, or ask whoever trained them"))
    return "\n".join(["| part | source | licence |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _is_trained_whole(found: Checkpoint) -> bool:
    """Whether the run that made this checkpoint trained the backbone's own weights."""
    recipe = _recipe(found) or {}
    return found.holds_backbone and recipe.get("optimizer", {}).get("backbone", "frozen") != "frozen"


def _base(found: Checkpoint) -> str:
    """The backbone by the name it came under: where the checkpoint holds it itself, the run's recipe may know that."""
    encoder = (_recipe(found) or {}).get("encoder") or {}
    return str(encoder["backbone"]) if encoder and _is_trained_whole(found) else found.config.backbone


def _origin(reference: str, *, inside: bool) -> tuple[str, str]:
    """Where weights come from and their licence; `inside`: they are in the folder, so it was one of the places."""
    known = KNOWN.get(reference)
    if known and inside and installed(known):
        dequantised = ", dequantised" if known.file.endswith(".gguf") else ""
        return f"{known.hub_id}, from the package `{known.package}` {known.version}{dequantised}", known.licence
    if known:
        return f"{known.hub_id}, or the package `{known.package}` {known.version}", known.licence
    if is_hub_id(reference):
        return reference, f"see https://huggingface.co/{reference}"
    return "a local model", _UNKNOWN_TERMS


def _name(reference: str) -> str:
    """A name to show: never a path of the machine where the export was made."""
    if known := KNOWN.get(reference):
        return known.hub_id
    return reference if is_hub_id(reference) else "a local model"


def _metadata(found: Checkpoint, format: str, own: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    references = [_base(found), found.config.contextual.encoder if found.config.contextual else ""]
    base = [_name(reference) for reference in references if reference in KNOWN or is_hub_id(reference)]
    ours: dict[str, Any] = {
        "library_name": "sentence-transformers" if format == "sentence-transformers" else "epic-search",
        "pipeline_tag": "sentence-similarity",
        "tags": sorted({*own.get("tags", []), "epic-search", "sentence-similarity", "feature-extraction"}),
    }
    if base:
        ours["base_model"] = base
    return ModelCardData(**{**own, **ours}).to_yaml().strip()


def _own_card(found: Checkpoint) -> tuple[dict[str, Any], str] | None:
    """Metadata and text of the checkpoint's own card, the text with its headings one level down.

    Of a card of an earlier export, the text from the parts on: what stands before is about that export.
    """
    from huggingface_hub import ModelCard

    path = found.folder / FILE if found.folder else None
    if path is None or not path.is_file():
        return None
    body = path.read_text(encoding="utf-8").strip()
    metadata: dict[str, Any] = {}
    if body.startswith("---"):
        card = ModelCard(body, ignore_metadata_errors=True)
        metadata, body = card.data.to_dict(), card.text.strip()
    _, is_earlier, rest = body.partition(f"\n{_PARTS}\n")
    if is_earlier:
        return metadata, _PARTS + "\n" + rest
    return metadata, _lower_headings(re.sub(r"\A# .*\n+", "", body))


def _lower_headings(body: str) -> str:
    """Each heading one level down, except in fenced code."""
    lines, fenced = [], False
    for line in body.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines)


def _run_sections(found: Checkpoint) -> list[str]:
    """Training, data and results as far as the run folder tells, and the intended use."""
    sections = ["## Intended use", _TYPICAL_USE]
    if found.folder is None:
        return [*sections, "## Training", "None of ours: the language model as it is."]
    recipe = _recipe(found)
    if recipe is None:
        return [*sections, "## Training", "Data, recipe and results are not known to epic-search: state them here."]
    shown = json.dumps(_without_places(recipe), indent=2, ensure_ascii=False)
    sections += ["## Training data", _data(recipe), "## Recipe", f"```json\n{shown}\n```"]
    if result := _last_step(found.folder.parent / _RUN_LOG):
        sections += ["## Results", result]
    return sections


def _recipe(found: Checkpoint) -> dict[str, Any] | None:
    """The recipe of the run that the checkpoint lies in."""
    return _json(found.folder.parent / _RUN_RECIPE) if found.folder else None


def _data(recipe: dict[str, Any]) -> str:
    rows = ["| source | licence |", "|---|---|"]
    data = recipe.get("data") or {}
    for entry in [*(data.get("pairs") or []), *(data.get("labels") or [])]:
        if entry.get("builtin"):
            rows.append("| documentation in the Python standard library | PSF-2.0 |")
        elif entry.get("dataset"):
            subset = f" ({entry['subset']})" if entry.get("subset") else ""
            rows.append(f"| {entry['dataset']}{subset} | see https://huggingface.co/datasets/{entry['dataset']} |")
        else:
            files = entry.get("files") or []
            for name in [files] if isinstance(files, str) else files:
                rows.append(f"| {Path(name).name} | {_UNKNOWN_TERMS} |")
    return "\n".join(rows)


def _without_places(value: Any) -> Any:
    """A recipe in which absolute paths are file names: where they lay is nobody's business."""
    if isinstance(value, dict):
        return {key: _without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_places(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _last_step(log: Path) -> str | None:
    """The last line of a training log as a sentence."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    row = json.loads(lines[-1]) if lines else {}
    if not {"step", "steps", "loss", "seconds"} <= row.keys():
        return None
    return (
        f"Training loss {row['loss']:.3f} at step {row['step']} of {row['steps']}, after {row['seconds'] / 60:.1f} "
        "minutes. No evaluation is recorded beside the checkpoint."
    )


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
