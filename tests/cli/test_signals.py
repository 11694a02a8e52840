"""Ctrl-C and a closed pipe, in a process of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from epic_search.cli.main import main; main()"]


def test_ctrl_c_while_indexing(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    os.mkfifo(corpus)
    process = subprocess.Popen(
        [*COMMAND, "index", corpus, "--home", tmp_path / "home", "--encoder", tiny_encoder_folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Opening a pipe waits for its reader: first the check of the arguments, then the reading of the corpus.
    os.close(os.open(corpus, os.O_WRONLY))
    writer = os.open(corpus, os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    os.close(writer)
    assert process.returncode == 130
    assert (stdout, stderr) == (
        "",
        "interrupted: what was stored is kept; run the same command again to continue.\n",
    )


@pytest.mark.parametrize("arguments", [["models", "list"], ["models", "list", "--json"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode != 0
