"""Query without a text: a prompt on a terminal, a query a line from a pipe."""

import errno
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epic_search.cli.main import app
from tests.cli.conftest import Run

COMMAND = [sys.executable, "-c", "from epic_search.cli.main import main; main()"]


@pytest.fixture
def indexed(run: Run, corpus: Path, tiny_encoder_folder: Path) -> Run:
    run("index", corpus, "--encoder", tiny_encoder_folder)
    return run


def test_a_query_a_line(indexed: Run) -> None:
    asked = b"read a csv file\n\n  remove a file \n\xff\nlast"
    done = CliRunner().invoke(app, ["query", "--jsonl", "-k", "2"], input=asked)
    assert done.exit_code == 2
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == ["read a csv file", "remove a file", "\udcff", "last"]
    assert [len(answer.get("hits", [])) for answer in answers] == [2, 2, 0, 2]
    assert "is not UTF-8" in answers[2]["error"] and "line 4: the query" in done.stderr
    one = json.loads(indexed("query", "read a csv file", "--jsonl", "-k", 2).stdout)
    assert one["hits"][0]["id"] == answers[0]["hits"][0]["id"]


def test_lines_of_hits_are_led_by_their_query(indexed: Run) -> None:
    done = CliRunner().invoke(app, ["query", "-k", "1"], input=b"read\tcsv\nremove\n")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and [row[:2] for row in rows] == [["read csv", "1"], ["remove", "1"]]
    assert all(len(row) == 6 for row in rows)
    assert "use --jsonl" in indexed("query", "--json", code=2).stderr


def test_answers_come_one_by_one(indexed: Run) -> None:
    process = subprocess.Popen([*COMMAND, "query", "--jsonl"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    for query in ("one", "two"):
        process.stdin.write(f"{query}\n".encode())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["query"] == query
    process.stdin.close()
    assert process.wait(timeout=240) == 0


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, arguments: list[str], **environment: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(COMMAND[0], [*COMMAND, *arguments], os.environ | environment)

    def read(self, until: str = "\n> ") -> str:
        """What it says up to here, or to its end."""
        said, deadline = b"", time.monotonic() + 120
        while not said.decode(errors="replace").replace("\r\n", "\n").endswith(until):
            assert time.monotonic() < deadline, said
            try:
                part = os.read(self.fd, 65536)
            except OSError as error:  # how a terminal says that the other side has gone
                assert error.errno == errno.EIO
                break
            if not part:
                break
            said += part
        return said.decode(errors="replace").replace("\r\n", "\n")

    def ask(self, line: str) -> str:
        """The answer to a line."""
        os.write(self.fd, line.encode())
        return self.read()

    def end(self) -> int:
        """Ctrl-D; the exit code."""
        os.write(self.fd, b"\x04")
        self.read(until="never")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_the_prompt(indexed: Run, tmp_path: Path) -> None:
    terminal = Terminal(["query"], TERM="dumb", NO_COLOR="1", COLUMNS="60", XDG_STATE_HOME=str(tmp_path / "state"))
    assert ":help lists the commands" in terminal.read()
    assert "csv.DictReader" in terminal.ask("read a csv file\n")
    opened = terminal.ask(":open 1\n")
    assert "id: " in opened and "score: " in opened
    assert "give a number from 1 to 3" in terminal.ask(":open 9\n")
    terminal.ask("half a query\x03")
    assert "'hits'" not in terminal.ask(":json\n") and '"hits": [' in terminal.ask("x\n")
    terminal.ask(":json\n")
    assert terminal.ask(":k 1\n") is not None
    one = terminal.ask("remove\n")
    assert one.count(" 1  ") == 1 and " 2  " not in one
    assert "is no command" in terminal.ask(":nonsense \x1b[31m\n")
    assert ":open N" in terminal.ask(":help\n")
    assert terminal.end() == 0
    history = (tmp_path / "state" / "epic-search" / "history").read_text().splitlines()
    assert history[:2] == ["read a csv file", ":open 1"] and "half a query" not in history


def test_hostile_text_opened_whole(run: Run, corpus: Path, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    text = "one\x1b]8;;http://x\x07\n    two\u202e\x9b2J\u2028three\tx"
    corpus.write_text(json.dumps({"_id": "\x1b[2Jid", "text": text, "note": "\x1b[31m[red]\u202e"}))
    run("index", corpus, "--encoder", tiny_encoder_folder)
    terminal = Terminal(["query"], TERM="dumb", NO_COLOR="1", XDG_STATE_HOME=str(tmp_path))
    terminal.read()
    said = terminal.ask("x\n") + terminal.ask(":open 1\n")
    assert not any(c in said for c in "\x1b\x9b\x07\u202e")
    assert "\n    two\ufffd\ufffd2J\nthree   x\n" in said
    assert terminal.end() == 0
