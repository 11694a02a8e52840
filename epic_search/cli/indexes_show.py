"""`epic-search indexes show`: all there is to know about one index without reading its contents."""

import os
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.cli import console, options
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.index.folder import Home
    from epic_search.index.manifest import Manifest

SIZES = ("size", "store_size", "list_size", "aside_size")


def show(name: options.IndexName, *, home: "Home", json: options.Json = False) -> None:
    """Show one index: sizes, counts, encoder, task, demonstrations, fields, and whether its source has changed."""
    from epic_search.index.place import place_of, stored_manifest

    with closing(place_of(name, home)) as place:
        manifest = stored_manifest(place)
        where, sizes, taught = place.where, place.sizes(), place.taught_count(manifest)
    loadable, reason = _loadable(manifest)
    found: dict[str, Any] = {
        "name": name,
        "path": where,
        "status": manifest.status,
        "documents": manifest.documents,
        "passages": manifest.passages,
        **{key: sizes.get(key) for key in SIZES},
        "encoder": manifest.encoder,
        "encoder_loadable": loadable,
        "encoder_problem": reason,
        "fingerprint": manifest.fingerprint,
        "dim": manifest.dim,
        "cut_to": manifest.cut_to,
        "task": manifest.task,
        "taught": taught,
        "demonstrations": [pair.model_dump() for pair in manifest.demonstrations],
        "fields": {name: manifest.types[name].type if name in manifest.types else None for name in manifest.fields},
        "lexical": manifest.lexical is not None,
        "quantize": manifest.quantize,
        "first_stage": manifest.first_stage,
        "source": manifest.source,
        "source_state": _source_state(manifest),
        "indexed": manifest.indexed,
        "created": manifest.created,
        "updated": manifest.updated,
        "epic_search": manifest.epic_search,
        "format": manifest.format,
    }
    if json:
        console.print_json(found)
        return
    shown = found | {key: console.size_text(found[key]) for key in SIZES if found[key]}
    shown["encoder_loadable"] = "yes" if loadable else "no"
    shown["demonstrations"] = "; ".join(f"{pair.query} -> {pair.passage}" for pair in manifest.demonstrations)
    shown["fields"] = ", ".join(f"{name}:{type}" if type else name for name, type in found["fields"].items())
    shown["lexical"] = "yes" if found["lexical"] else "no"
    console.print_fields(
        [(key.replace("_", " "), str(value)) for key, value in shown.items() if value not in (None, "", 0)]
    )


def _loadable(manifest: "Manifest") -> tuple[bool, str | None]:
    """Whether the encoder is on this machine and is the one that made the index; else why not. Loads no weights."""
    from epic_search.encoder import checkpoint

    # Read when huggingface_hub is imported: what would have to be fetched is not here.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        found = checkpoint.find(manifest.encoder)
    except UserError as error:
        return False, str(error)
    cut = replace(found, config=found.config.model_copy(update={"dim": manifest.cut_to}))
    if cut.fingerprint() != manifest.fingerprint:
        return False, f"{manifest.encoder!r} is another encoder now than the one that made the index"
    return True, None


def _source_state(manifest: "Manifest") -> str | None:
    """Whether a file that was indexed last, or one in a folder that was, has been written since."""
    sources = [Path(name) for name in manifest.source.split(", ") if name]
    if not sources:
        return None
    if missing := [source for source in sources if not source.exists()]:
        return f"{missing[0]} is not a file or folder that is there now"
    files = (file for source in sources for file in ([source] if source.is_file() else source.rglob("*")))
    # The manifest keeps whole seconds.
    indexed = datetime.fromisoformat(manifest.indexed or manifest.updated).timestamp()
    if any(int(file.stat().st_mtime) > indexed for file in files if file.is_file()):
        return "changed since it was indexed"
    return "not changed since it was indexed"
