"""What the command line asks of a server of this machine: in parts where it is much, and of an older one."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_server import command
from typer.testing import Result

from epic_search.errors import UserError
from epic_search.index.taught_pair import Lesson
from epic_search.serving.client import Client, ServedTeaching
from epic_search.serving.limits import BODY_BYTES


@pytest.fixture
def older() -> Iterator[SimpleNamespace]:
    """A server that teaches everything, and does not know what came later; `bodies` is what it read."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            is_known = self.path.endswith("/demonstrations")
            problem = {"message": f"there is nothing at {self.path}", "hint": "GET /docs lists it", "position": None}
            self.send_response(200 if is_known else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"taught": []} if is_known else {"error": problem}).encode())

        def log_message(self, *_: object) -> None:
            """To nobody."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", bodies=bodies)
        server.shutdown()


def test_more_pairs_than_a_server_takes_are_taught_in_parts(served: SimpleNamespace, tmp_path: Path) -> None:
    def teach(pairs: list[dict[str, str]]) -> Result:
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        return command(served.home, "teach", "--file", str(tmp_path / "pairs.jsonl"), "--json")

    pairs = [{"query": f"note {n} of the marsh", "id": f"d{n % 9}"} for n in range(150)]
    failed = teach([*pairs[:100], {"query": "which note", "id": "d1000"}, *pairs[100:]])
    said = " ".join(failed.stderr.split())
    assert failed.exit_code == 2 and "no document 'd1000'" in said
    assert "the 64 pairs before are taught: correct it and repeat the command, which teaches none twice" in said
    done = teach([*pairs, *pairs[:10]])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (len(answer["taught"]), answer["known"], answer["total"]) == (150 - 64, 64, 150)
    assert command(served.home, "teach", "clear", "--yes").exit_code == 0


def test_no_part_is_larger_than_a_server_reads(older: SimpleNamespace, tmp_path: Path) -> None:
    """Of 40 MB in JSON, where a letter of this script takes six bytes; a single pair is sent whatever its size."""
    lessons = [Lesson(f"query {n}", passage="ж" * 90_000) for n in range(80)]
    ServedTeaching(Client(older.url), tmp_path / "notes").teach_all(lessons)
    assert max(map(len, older.bodies)) < BODY_BYTES
    taught = [lesson for body in older.bodies for lesson in json.loads(body)["lessons"]]
    assert taught == [{"query": lesson.query, "passage": lesson.passage} for lesson in lessons]
    huge = Lesson("query", passage="ж" * BODY_BYTES)
    ServedTeaching(Client(older.url), tmp_path / "notes").teach_all([huge, lessons[0]])
    assert [len(json.loads(body)["lessons"]) for body in older.bodies[-2:]] == [1, 1]


def test_an_older_server_is_called_so(older: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which has the index open, is of an older epic-search") as error:
        ServedTeaching(Client(older.url), tmp_path / "notes").forget("which bird sleeps")
    assert f"the server at {older.url}," in str(error.value)
    assert "no POST /indexes/notes/demonstrations/forget); stop it and start it again" in str(error.value)
