"""Does the server keep up: many clients at once beside one at a time, and far too many.

    python benchmarks/serving.py --out serving.json
    python benchmarks/serving.py --documents 500 --seconds 5          # a minute

Serves an index of the documentation of Python's standard library with the default encoder (made under --home when it
is not there yet) in a process of its own, and asks over kept-alive connections, each query different, hybrid, k = 10:

    one       a client that asks again as soon as it has its answer
    many      --clients such clients
    flood     --flood such clients, more than the server lets in: 429 is an answer, told to wait a second
    after     one client again

For each: answers a second, milliseconds of a 200 (median, 99th percentile), and what else came. A lost request is one
that got no answer. Also the server's memory before and after, and at the end SIGTERM while all clients ask: how many
requests on open connections got no answer, and the exit code.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer

from epic_search.stdlib import documents

INDEX = "serving-benchmark"


@dataclass
class Tally:
    """What clients got. `milliseconds`: of answers with status 200."""

    statuses: Counter[int] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def summary(self, seconds: float) -> dict[str, Any]:
        p50, p99 = np.percentile(self.milliseconds or [np.nan], [50, 99])
        return {
            "per_second": self.statuses[200] / seconds,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "lost": len(self.lost),
        }


class Clients:
    """Clients of one server that ask queries made of the words of real documents."""

    def __init__(self, url: str, texts: list[str]) -> None:
        self._netloc = urlsplit(url).netloc
        self._texts = texts
        self._number = iter(range(10**9))

    def ask_for(self, seconds: float, *, clients: int) -> Tally:
        """All clients ask for so long; the last requests are waited for."""
        end = time.monotonic() + seconds
        return self._ask(clients, lambda: time.monotonic() < end)

    def ask_until_closed(self, *, clients: int) -> Tally:
        """All clients ask until they can connect no more."""
        return self._ask(clients, lambda: True)

    def _ask(self, clients: int, goes_on: Any) -> Tally:
        tally, lock = Tally(), threading.Lock()

        def client() -> None:
            connection = http.client.HTTPConnection(self._netloc, timeout=120)
            while goes_on():
                try:
                    if connection.sock is None:
                        connection.connect()
                except OSError:
                    return
                start = time.perf_counter()
                try:
                    body = json.dumps({"query": self._query()})
                    connection.request("POST", "/search", body, {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    response.read()
                except (OSError, http.client.HTTPException) as error:
                    tally.lost.append(repr(error))
                    connection.close()
                    continue
                with lock:
                    tally.statuses[response.status] += 1
                    if response.status == 200:
                        tally.milliseconds.append(1000 * (time.perf_counter() - start))
                if response.status == 429:
                    time.sleep(float(response.headers["Retry-After"]))

        with ThreadPoolExecutor(clients) as threads:
            for each in [threads.submit(client) for _ in range(clients)]:
                each.result()
        return tally

    def _query(self) -> str:
        number = next(self._number)
        words = self._texts[number % len(self._texts)].split()
        first = 7 * number % max(1, len(words) - 8)
        return f"{' '.join(words[first : first + 8])} {number}"


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def make_index(home: Path, count: int) -> list[str]:
    """Index the first documents; returns their texts."""
    found = list(documents())[:count]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as corpus:
        corpus.writelines(json.dumps(document) + "\n" for document in found)
        corpus.flush()
        command = ["index", corpus.name, "--name", INDEX, "--home", home, "--prune"]
        subprocess.run([sys.executable, "-m", "epic_search", *command], check=True)
    return [document["text"] for document in found]


def main(
    home: Annotated[Path, typer.Option(help="Where the index is kept between runs.")] = Path("indexes"),
    number: Annotated[int, typer.Option("--documents", help="How many are indexed.")] = 2000,
    seconds: Annotated[float, typer.Option(help="Of each part.")] = 60.0,
    clients: Annotated[int, typer.Option(help="How many ask at once.")] = 32,
    flood: Annotated[int, typer.Option(help="How many are too many.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Write the results there, as JSON.")] = None,
) -> None:
    """Serve, ask, report."""
    texts = make_index(home, number)
    command = [sys.executable, "-m", "epic_search", "serve", INDEX, "--home", home, "--port", "0", "--log", "off"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    started = time.monotonic()
    line = next(line for line in server.stderr if " at http" in line)
    results: dict[str, Any] = {"cores": os.cpu_count(), "documents": len(texts), "start_s": time.monotonic() - started}
    some = Clients(re.findall(r"http://\S+", line)[0], texts)
    some.ask_for(2.0, clients=clients)  # warm
    results["memory_before_mib"] = memory_mib(server.pid)
    for name, count in (("one", 1), ("many", clients), ("flood", flood), ("after", 1)):
        start = time.monotonic()
        tally = some.ask_for(seconds, clients=count)
        results[name] = {"clients": count, **tally.summary(time.monotonic() - start)}
        print(name, json.dumps(results[name]))
    results["memory_after_mib"] = memory_mib(server.pid)
    results["speedup"] = results["many"]["per_second"] / results["one"]["per_second"]
    timer = threading.Timer(1.0, server.send_signal, [signal.SIGTERM])
    timer.start()
    ended = some.ask_until_closed(clients=clients)
    results["sigterm"] = {"lost": len(ended.lost), "exit_code": server.wait(), "answered": ended.statuses[200]}
    print(json.dumps({name: value for name, value in results.items() if not isinstance(value, dict)}))
    print("sigterm", json.dumps(results["sigterm"]))
    if out is not None:
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
