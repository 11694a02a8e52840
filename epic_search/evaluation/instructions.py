"""The instruction of each task: the sentence that says what to look for. `instructions.toml` holds them."""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path

from epic_search.evaluation.kinds import KINDS, Kind

FILE = Path(__file__).with_name("instructions.toml")


def instruction_for(name: str, kind: Kind, *, prompt: str | Mapping[str, str] | None = None) -> str:
    """The task's own sentence, else the one that mteb's metadata give (`prompt`), else the default of its kind."""
    own, defaults = _tables()
    given = prompt.get("query") if isinstance(prompt, Mapping) else prompt
    return own.get(name) or given or defaults[kind]


@functools.cache
def _tables() -> tuple[dict[str, str], dict[str, str]]:
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    assert tables["kinds"].keys() == set(KINDS), (tables["kinds"].keys(), KINDS)
    return tables["tasks"], tables["kinds"]
