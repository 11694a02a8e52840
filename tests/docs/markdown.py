"""The commands that a page of the documentation shows."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELL = ("", "console", "sh", "bash")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """`epic-search ARGUMENTS`, as a page shows it; `fed_by` and `reads` are what comes to its standard input."""

    shown: str
    line: int
    arguments: list[str]
    fed_by: list[str]
    reads: str = ""
    writes: str = ""


def blocks(page: Path, *, languages: tuple[str, ...] = SHELL) -> list[tuple[int, str]]:
    """The line at which each fenced block begins, and its text."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start()) + 2, found[2]) for found in FENCE.finditer(text) if found[1] in languages
    ]


def commands(block: str, *, first_line: int) -> Iterator[Command]:
    """The block's commands of epic-search, also those that torchrun or a pipe starts; comments are left out."""
    joined = re.sub(r"\\\n", lambda _: "\0", block)
    for number, raw in enumerate(joined.split("\n")):
        shown = re.sub(r"\0\s*", " ", raw).removeprefix("$ ")
        words = shlex.split(shown, comments=True) if "epic-search" in shown or "epic_search" in shown else []
        line = first_line + number + joined[: joined.find(raw)].count("\0")
        if "epic_search" in words and "-m" in words:
            yield Command(shown, line, words[words.index("epic_search") + 1 :], [])
            continue
        if words and words[0] == "for":
            words = words[words.index("do") + 1 : -1]
            words[-1] = words[-1].removesuffix(";")
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        fed_by: list[str] = []
        if "|" in words:
            fed_by, words = words[: words.index("|")], words[words.index("|") + 1 :]
        if not words or words[0] != "epic-search":
            continue
        redirected = {}
        for sign in ("<", ">"):
            if sign in words:
                place = words.index(sign)
                redirected[sign] = words[place + 1]
                words = words[:place] + words[place + 2 :]
        yield Command(shown, line, words[1:], fed_by, redirected.get("<", ""), redirected.get(">", ""))
