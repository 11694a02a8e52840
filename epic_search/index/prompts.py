"""The prompt kept with an index: texts in the manifest, vectors in a file, so a query encodes only itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from epic_search.encoder.prompt import Demonstration, Prompt
from epic_search.index.manifest import Manifest, StoredDemonstration

if TYPE_CHECKING:
    from epic_search.encoder import Encoder

PROMPT_FILE = "prompt.safetensors"
PREFIX_FILE = "prefix.safetensors"


def new_prompt(
    manifest: Manifest,
    *,
    encoder: "Encoder",
    task: str | None,
    demonstrations: Sequence[Demonstration] | None,
) -> Prompt | None:
    """The index's prompt with another task or other demonstrations; None when neither is given.

    Raises UserError when the prompt does not fit the encoder.
    """
    if task is None and demonstrations is None:
        return None
    return encoder.prompt(
        task=manifest.task if task is None else task,
        demonstrations=_texts(manifest) if demonstrations is None else demonstrations,
    )


def store_prompt(folder: Path, manifest: Manifest, prompt: Prompt, *, encoder: "Encoder") -> None:
    """Write the prompt's vectors and its prefix, and its texts into `manifest`, which the caller saves."""
    # A crash between this file and the manifest leaves them different; load_prompt sees that.
    temporary = folder / f"{PROMPT_FILE}.tmp"
    prompt.save(temporary)
    temporary.replace(folder / PROMPT_FILE)
    encoder.save_prefix(prompt, folder / PREFIX_FILE)
    note_prompt(manifest, prompt)


def note_prompt(manifest: Manifest, prompt: Prompt) -> None:
    """Put the prompt's texts into the manifest."""
    manifest.task = prompt.task
    manifest.demonstrations = [
        StoredDemonstration(query=pair.query, passage=pair.passage, names_class=pair.names_class)
        for pair in prompt.demonstrations
    ]


def load_prompt(folder: Path, manifest: Manifest, *, encoder: "Encoder") -> Prompt:
    """The prompt that the manifest names, from its file where that holds the same, else encoded anew."""
    path = folder / PROMPT_FILE
    if path.exists():
        prompt = Prompt.load(path)
        mine = (manifest.task, _texts(manifest), manifest.fingerprint)
        if (prompt.task, list(prompt.demonstrations), prompt.encoder) == mine:
            encoder.restore_prefix(prompt, folder / PREFIX_FILE)
            return prompt
    return encode_prompt(manifest, encoder=encoder)


def encode_prompt(manifest: Manifest, *, encoder: "Encoder") -> Prompt:
    """The prompt that the manifest names, encoded anew."""
    return encoder.prompt(task=manifest.task, demonstrations=_texts(manifest))


def _texts(manifest: Manifest) -> list[Demonstration]:
    return [Demonstration(d.query, d.passage, d.names_class) for d in manifest.demonstrations]
