"""Ctrl-C and a closed pipe, in a process of their own."""

import errno
import os
import signal
import subprocess
import sys
import time
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
    writer = _once_it_is_read(corpus, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=240)
    os.close(writer)
    assert process.returncode == 130
    assert (stdout, stderr) == (
        "",
        "interrupted: what was stored is kept; run the same command again to continue.\n",
    )


def _once_it_is_read(pipe: Path, reader: subprocess.Popen[str], *, seconds: float = 120) -> int:
    """A descriptor to write to the pipe, as soon as the process has opened it; it ends with the process."""
    deadline = time.monotonic() + seconds
    while reader.poll() is None and time.monotonic() < deadline:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO, "no reader yet"
            time.sleep(0.02)
    reader.kill()
    pytest.fail(f"the pipe was never read: {reader.communicate()}")


@pytest.mark.parametrize("arguments", [["models", "list"], ["models", "list", "--json"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode != 0
