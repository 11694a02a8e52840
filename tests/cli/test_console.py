"""What the console prints is safe for a terminal, short enough to read, and ends with the right exit code."""

import json
import string

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from epic_search.cli import console
from epic_search.errors import UserError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("two\nlines\tand  spaces ", "two lines and spaces"),
        ("\x1b[2J\x1b]0;title\x07red", "\ufffd[2J\ufffd]0;title\ufffdred"),
        ("c1 \x9b31m and \x85 nel", "c1 \ufffd31m and nel"),
        ("over\u202etxt.exe", "over\ufffdtxt.exe"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
        ("नमस्ते שלום\u200f 👩\u200d🔬 soft\u00adhyphen", "नमस्ते שלום\u200f 👩\u200d🔬 soft\u00adhyphen"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert console.printable(text) == shown


@given(st.text())
def test_printable_never_lets_a_control_character_through(text: str) -> None:
    shown = console.printable(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in shown)


def test_excerpt_shows_the_words_of_the_query() -> None:
    text = "filler " * 100 + "read a csv file with named columns " + "filler " * 100
    shown = console.excerpt(text, query="How to read CSV files with columns?", length=60)
    assert "read a csv file with named columns" in shown
    assert shown.startswith("… ") and shown.endswith(" …")


def test_excerpt_without_a_match_is_the_beginning() -> None:
    text = "The first sentence stands here. " + "Then more. " * 50
    assert console.excerpt(text, query="zebra", length=31) == "The first sentence stands here. …"
    assert console.excerpt("short", query="zebra", length=31) == "short"


@given(
    st.text(alphabet=string.ascii_letters + " .\n"),
    st.text(alphabet=string.ascii_letters + " "),
    st.integers(10, 80),
)
def test_excerpt_keeps_its_length(text: str, query: str, length: int) -> None:
    assert len(console.excerpt(text, query=query, length=length)) <= length + len("… ") + len(" …")


def test_json_is_ascii_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "\x1b[31m \ud800 é", "score": 0.5}
    console.print_json(value)
    printed = capsys.readouterr().out
    assert printed.isascii() and "\x1b" not in printed
    assert json.loads(printed) == value


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError):
        console.print_json(float("nan"))


@pytest.mark.parametrize(("size", "shown"), [(812, "812 B"), (4404019, "4.2 MiB"), (3 << 30, "3.0 GiB"), (0, "0 B")])
def test_size_text(size: int, shown: str) -> None:
    assert console.size_text(size) == shown


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("there is no 'x'; use y"), 2, "error: there is no 'x'; use y\n"),
        (UserError("a \x1b[31mfile name"), 2, "error: a \ufffd[31mfile name\n"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again.\n"),
        (typer.Abort(), 130, "interrupted: run the same command again.\n"),
    ],
)
def test_mistakes_become_one_sentence_and_an_exit_code(error: BaseException, code: int, sentence: str) -> None:
    app = typer.Typer(cls=console.VerbGroup)

    @app.command()
    def verb() -> None:
        raise error

    @app.command()
    def other() -> None:
        pass

    result = CliRunner().invoke(app, ["verb"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, sentence, "")


def test_a_bug_is_not_hidden() -> None:
    app = typer.Typer(cls=console.VerbGroup)

    @app.command()
    def verb() -> None:
        raise AssertionError("3 != 4")

    @app.command()
    def other() -> None:
        pass

    assert isinstance(CliRunner().invoke(app, ["verb"]).exception, AssertionError)


def test_progress_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with console.working("loading"), console.progress_bar("indexing") as report:
        report(1, 2, "one")
        report(2, 2, "two")
    assert capsys.readouterr() == ("", "")
