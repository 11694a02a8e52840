"""Text and title of an HTML page, with libxml2 through lxml.

Python's own html.parser would do for sound pages, but can take quadratic time on malformed ones (a minute for 60 kB of
`<a ` in Python 3.11.7). libxml2's time grows with the size, and this use of it builds no tree.
"""

import re

from epic_search.index.document import Unusable

_words = str.split  # word lists read better as text than as one string a line

DROPPED = frozenset({"script", "style", "template", "noscript", "svg", "iframe", "noframes"})
BLOCKS = frozenset(
    _words(
        "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption"
        " figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol option p pre section"
        " summary table tbody td tfoot th thead tr ul"
    )
)
CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
CHARSET_WITHIN = 4096  # bytes; the standard has it in the first 1024


def charset(page: bytes) -> str:
    """The encoding that the page declares, else UTF-8."""
    declared = CHARSET.search(page[:CHARSET_WITHIN])
    name = declared[1].decode("ascii", "replace").lower() if declared else "utf-8"
    return "cp1252" if name in ("iso-8859-1", "latin1", "us-ascii", "ascii") else name  # as browsers read them


def title_and_text(page: str) -> tuple[str, str]:
    """The page's <title>, or its first <h1>, or ""; and its text, blocks on lines of their own."""
    from lxml import etree

    found = _Text()
    parser = etree.HTMLParser(target=found, encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        parser.feed(page.encode("utf-8"))
        text = parser.close()
    except etree.LxmlError as error:
        raise Unusable("malformed HTML", str(error)) from error
    return " ".join("".join(found.title).split()) or " ".join("".join(found.heading).split()), text


class _Text:
    """What the parser reports, as lines. White space counts as in a browser: as one space, except within <pre>."""

    def __init__(self) -> None:
        self.title: list[str] = []
        self.heading: list[str] = []
        self._parts: list[str] = ["\n"]
        self._open = dict.fromkeys([*DROPPED, "title", "pre"], 0)
        self._in_heading = False

    def start(self, tag: str, attributes: object) -> None:
        if tag in BLOCKS:
            self._break()
            self._in_heading = tag == "h1" and not self.heading
        if tag in self._open:
            self._open[tag] += 1

    def end(self, tag: str) -> None:
        if tag in BLOCKS:
            self._break()
            self._in_heading = False
        if tag in self._open:
            self._open[tag] -= 1

    def data(self, text: str) -> None:
        if any(self._open[tag] for tag in DROPPED):
            return
        if self._open["title"]:
            self.title.append(text)
            return
        if not self._open["pre"]:
            text = re.sub(r"\s+", " ", text)
            text = text.lstrip() if self._parts[-1][-1].isspace() else text
        if text:
            self._parts.append(text)
            if self._in_heading:
                self.heading.append(text)

    def close(self) -> str:
        return re.sub(r" +\n", "\n", "".join(self._parts)).strip()

    def _break(self) -> None:
        if self._parts[-1][-1] != "\n":
            self._parts.append("\n")
