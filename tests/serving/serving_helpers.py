"""The documents that are served, and a server process."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

BASE_URL = "http://127.0.0.1:8080"
Open = Callable[..., SimpleNamespace]

ANIMALS = ["otter", "heron", "lynx", "newt", "stoat", "raven", "trout"]
HOSTILE = "<script>alert(1)</script> \x1b[31mred\x1b[0m ‮ back"
DOCUMENTS = [
    *({"_id": f"d{n}", "title": f"Note {n}", "text": f"The {animal} sleeps, says note {n}.", "number": n}
      for n, animal in enumerate(ANIMALS * 4)),
    {"_id": "a/b c?", "text": HOSTILE},
]  # fmt: skip


@contextmanager
def server_process(home: Path, *arguments: object, **environment: str) -> Iterator[SimpleNamespace]:
    """`epic-search serve` at a free port: `.url`, `.process`, and `.log`, the file that its stderr goes to."""
    log = home.parent / f"serve-{len(list(home.parent.glob('serve-*')))}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "epic_search",
                "serve",
                "--home",
                home,
                "--port",
                "0",
                "--device",
                "cpu",
                *arguments,
            ],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
    try:
        while process.poll() is None and not (found := re.search(r" at (http://\S+) ", log.read_text())):
            try:
                process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
        assert process.poll() is None, log.read_text()
        yield SimpleNamespace(url=found[1], process=process, log=log)
    finally:
        process.kill()
        process.wait()
