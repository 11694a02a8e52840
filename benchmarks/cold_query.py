"""How long does `epic-search query` take in a process of its own, and what of that is torch?

    python benchmarks/cold_query.py --out cold_query.json
    python benchmarks/cold_query.py --rounds 3                    # a minute

Indexes some documentation of Python's standard library, then runs the command as a user does, each mode in turn, round
by round: median, 10th and 90th percentile of seconds, and of the processor's seconds, which other programs change less.
`--help` is what any command takes, `import torch` what no query by meaning can do without.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rounds import facts, spread, take_turns

from epic_search import stdlib

QUERY = "read a file line by line"


def main(
    documents: Annotated[int, typer.Option(help="So many are indexed.")] = 300,
    encoder: str = "epic-mini",
    rounds: int = 7,
    out: Path | None = None,
) -> None:
    """Measure cold queries."""
    ours = [sys.executable, "-m", "epic_search"]
    with tempfile.TemporaryDirectory() as work:
        home = ["--home", f"{work}/home"]
        source = Path(work) / "docs.jsonl"
        source.write_text("".join(json.dumps(found) + "\n" for found in stdlib.documents(documents)), encoding="utf-8")
        run([*ours, "index", str(source), "--encoder", encoder, *home])
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "--help": [*ours, "query", "--help"],
            **{mode: [*ours, "query", QUERY, "--mode", mode, *home] for mode in ("lexical", "dense", "hybrid")},
        }
        used: dict[str, list[float]] = {name: [] for name in commands}
        setups: dict[str, Callable[[], object]] = {
            name: partial(timed, command, used[name]) for name, command in commands.items()
        }
        seconds = take_turns(setups, rounds=rounds)
    results = {
        name: {"seconds": spread(seconds[name]), "processor seconds": spread(used[name][1:])} for name in commands
    }
    for name, found in results.items():
        wall, processor = found["seconds"], found["processor seconds"]
        print(f"{name:14}{wall['median']:7.2f} s  ({wall['p10']:.2f} to {wall['p90']:.2f})", end="")
        print(f"{processor['median']:9.2f} s of the processor")
    if out is not None:
        out.write_text(json.dumps(facts(encoder=encoder, rounds=rounds) | {"commands": results}, indent=2) + "\n")


def timed(command: list[str], used: list[float]) -> None:
    """Run a command; `used` gets its seconds of the processor, its children's too."""
    before = os.times()
    run(command)
    after = os.times()
    used.append(after.children_user + after.children_system - before.children_user - before.children_system)


def run(command: list[str]) -> None:
    """Run a command, which must succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    typer.run(main)
