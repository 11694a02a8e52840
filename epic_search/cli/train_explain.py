"""`epic-search train --explain KEY`: what the keys of a recipe mean and why they are set as they are."""

import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from epic_search.cli import console

if TYPE_CHECKING:
    from epic_search.training.explain import Key


def explain(wanted: str, *, json: bool) -> None:
    """Print a key, a table with its keys or, for "all", every key: paragraphs on a terminal, in a pipe a line each."""
    from epic_search.training import explain

    keys = explain.explain(wanted)
    if json:
        console.print_json([asdict(key) for key in keys])
    elif sys.stdout.isatty():
        width = min(100, shutil.get_terminal_size().columns) - 4
        for key in keys:
            print(f"{key.name}\n    {_values(key)}\n{textwrap.indent(textwrap.fill(key.description, width), '    ')}\n")
    else:
        rows = [[key.name, key.type, _default(key), key.allowed, key.description] for key in keys]
        console.print_table(["key", "type", "default", "allowed", "description"], rows, header=True)


def _values(key: "Key") -> str:
    parts = [key.type, key.allowed, f"default: {key.default}" if key.default else _default(key)]
    return "; ".join(part for part in parts if part)


def _default(key: "Key") -> str:
    return key.default or ("must be given" if key.required else "may be left out")
