"""The title of a Markdown or reStructuredText file: its first heading."""

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_ADORNMENT = re.compile(r"([!-/:-@[-`{-~])\1+[ \t]*$")


def markdown_title(text: str) -> str:
    """The first heading outside code and front matter, `# Heading` or underlined; "" where there is none."""
    lines = text.split("\n")
    if lines[0].rstrip() == "---" and "---" in (ends := [line.rstrip() for line in lines[1:]]):
        lines = lines[ends.index("---") + 2 :]
    fence, above = "", ""
    for line in lines:
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
            above = ""
        elif not fence:
            if (heading := _ATX.match(line)) and heading[1]:
                return heading[1]
            if above and _SETEXT.match(line):
                return above
            above = line.strip() if not line.startswith(("    ", "\t", ">", "-", "*", "|")) else ""
    return ""


def rst_title(text: str) -> str:
    """The first line that is underlined with punctuation at least as long as itself; "" where there is none."""
    above = ""
    for line in text.split("\n"):
        if above and _ADORNMENT.match(line) and len(line.rstrip()) >= len(above):
            return above.strip()
        above = "" if _ADORNMENT.match(line) or line.startswith("..") else line.rstrip()
    return ""
