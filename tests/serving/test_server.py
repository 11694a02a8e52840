"""A real server process, asked by clients that know nothing of it: openai's, MCP's, plain sockets, our own command."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client
from mcp.client.stdio import stdio_client
from serving_helpers import DOCUMENTS, server_process
from tokenizers import Regex, Tokenizer, normalizers
from typer.testing import CliRunner, Result

from epic_search.cli.main import app
from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig
from epic_search.index import index_corpus
from epic_search.index.lock import served_at

COMMAND = [sys.executable, "-m", "epic_search"]


def ask(url: str, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of one request, over a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method or ("GET" if body is None else "POST"), path, data, _named(headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}


def command(home: Path, *arguments: str, token: str = "") -> Result:
    """`epic-search` in this process, with stdout and stderr apart."""
    environment = {"EPIC_SEARCH_TOKEN": token}
    return CliRunner().invoke(app, [*arguments, "--home", str(home)], env=environment, catch_exceptions=False)


def test_the_openai_client_works_unmodified(served: SimpleNamespace, tiny_encoder: Encoder) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    texts = ["an otter", "a lynx by night"]
    expected_NE = tiny_encoder.encode_passages(texts)
    assert [model.id for model in client.models.list()] == ["tiny"]
    default = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    floats = client.embeddings.create(model="tiny", input=texts, encoding_format="float", dimensions=64)
    for answer in (default, floats):
        vectors_NE = np.array([row.embedding for row in answer.data], dtype=np.float32)
        assert np.sum(vectors_NE * expected_NE, axis=1) == pytest.approx(1.0, abs=2e-3)  # bfloat16 where it is fast
    assert default.usage.total_tokens == sum(len(ids) for ids in tiny_encoder.token_ids(texts))
    query = client.embeddings.create(model="tiny", input="an otter", extra_body={"input_type": "query"})
    assert query.data[0].embedding != default.data[0].embedding
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.embeddings.create(model="gpt", input="an otter")
    with pytest.raises(openai.UnprocessableEntityError, match="64 dimensions"):
        client.embeddings.create(model="tiny", input="an otter", dimensions=5)


@pytest.mark.parametrize("is_served", [True, False], ids=["through the server", "alone"])
def test_the_mcp_client_works_unmodified(served: SimpleNamespace, home: Path, is_served: bool) -> None:
    where = served.home if is_served else home
    arguments = [*COMMAND[1:], "mcp", "--home", str(where), "--device", "cpu"]
    server = StdioServerParameters(command=COMMAND[0], args=arguments, env=dict(os.environ))

    async def talk() -> None:
        async with Client(stdio_client(server)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"search", "get"}
            found = await client.call_tool("search", {"query": "the otter", "k": 3, "filter": "number < 10"})
            assert not found.is_error, found.content
            hits = found.structured_content["results"][0]["hits"]
            assert len(hits) == 3 and all(hit["payload"]["number"] < 10 for hit in hits)
            read = await client.call_tool("get", {"index": "notes", "id": "a/b c?"})
            assert read.structured_content["passages"] == [DOCUMENTS[-1]["text"]]
            assert (await client.call_tool("get", {"id": "a/b c?"})).structured_content == read.structured_content
            for tool, arguments, words in [
                ("get", {"index": "notes", "id": "nope"}, "no document 'nope'"),
                ("search", {"query": "otter", "index": "nope"}, "no index 'nope'"),
                ("search", {"query": "otter", "filter": "colour = red"}, "colour"),
            ]:
                wrong = await client.call_tool(tool, arguments)
                assert wrong.is_error and words in wrong.content[0].text

    asyncio.run(asyncio.wait_for(talk(), timeout=480))


def test_the_query_command_asks_the_server_and_prints_the_same(served: SimpleNamespace, home: Path) -> None:
    for arguments in (
        ["--json", "-k", "3", "--explain", "--facet", "number"],
        ["-k", "2", "--filter", "number>=5", "--boost", "0.5"],
        ["--filter", "number>>5"],
        ["--mode", "lexical", "--task", "birds"],
    ):
        through = command(served.home, "query", "the otter", *arguments)
        alone = command(home, "query", "the otter", *arguments, "--device", "cpu")
        assert (through.exit_code, through.stdout, through.stderr) == (alone.exit_code, alone.stdout, alone.stderr)


def test_teach_suggest_asks_the_server_and_prints_the_same(served: SimpleNamespace, home: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("the otter\nwhich bird sings\nmountains in winter\n")
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, code in (
        (["-n", "3"], 0),
        (["--queries", str(tmp_path / "queries.txt"), "-n", "2", "--by", "margin"], 0),
        (["--queries", str(tmp_path / "empty.txt")], 2),
    ):
        through = command(served.home, "teach", "suggest", *arguments)
        alone = command(home, "teach", "suggest", *arguments, "--device", "cpu")
        assert (through.exit_code, through.stdout) == (alone.exit_code, alone.stdout) and through.exit_code == code
    found = json.loads(command(served.home, "teach", "suggest", "-n", "1", "--json").stdout)
    assert found[0].keys() == {"query", "id", "title", "text", "score", "margin", "similarity"}


def test_more_queries_than_a_server_takes_are_suggested_from_in_parts(
    served: SimpleNamespace, home: Path, tmp_path: Path
) -> None:
    """As alone: the queries are spread over three requests, and one that comes twice, or is taught, is left out."""
    queries = [f"{place} {n}" for n in range(250) for place in ("sea", "marsh")]
    file = tmp_path / "queries.txt"
    file.write_text("\n".join([*queries, queries[0]]))
    commands = {"through": served.home, "alone": home}
    found = {}
    for name, where in commands.items():
        assert command(where, "teach", "add", queries[7], "d1").exit_code == 0
        said = command(where, "teach", "suggest", "--queries", str(file), "-n", "300", "--json")
        assert said.exit_code == 0, said.stderr
        found[name] = {one["query"]: one["margin"] for one in json.loads(said.stdout)}
        command(where, "teach", "rm", queries[7])
    assert len(found["through"]) == 300 and list(found["through"].values()) == sorted(found["through"].values())
    assert queries[7] not in found["through"]
    # Vectors differ a little with the texts that they are encoded with, so that of alike margins another may be last.
    for one, other in (("through", "alone"), ("alone", "through")):
        last = max(found[other].values())
        for query, margin in found[one].items():
            assert abs(margin - found[other].get(query, last)) < 1e-3, (query, margin)


def test_what_cannot_be_suggested_in_parts_is_said(served: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("\n".join(f"query {n}" for n in range(1001)))
    done = command(served.home, "teach", "suggest", "--queries", str(file), "--by", "coverage")
    said = " ".join(done.stderr.split())
    assert done.exit_code == 2 and "compares all 1,001 queries with each other" in said
    assert "takes 1,000; give so many or fewer, choose --by margin, or stop the server" in said


def test_a_very_long_query_is_taught_listed_and_forgotten(
    tiny_config: EncoderConfig, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    """Of 100,000 characters, which are a few tokens: this tokenizer takes many blanks for one, as others do."""
    backbone = shutil.copytree(tiny_backbone_folder, tmp_path / "llama")
    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Replace(Regex(" +"), " ")
    tokenizer.save(str(backbone / "tokenizer.json"))
    encoder = Encoder.create(tiny_config.model_copy(update={"backbone": str(backbone)}), device="cpu")
    encoder.save(tmp_path / "encoder")
    encoder = Encoder.load(tmp_path / "encoder", device="cpu")
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    index_corpus(tmp_path / "notes.jsonl", name="notes", encoder=encoder, home=tmp_path / "home")
    query = f"otter{' ' * 99_990}river"
    with server_process(tmp_path / "home") as server:
        assert command(tmp_path / "home", "teach", "add", query, "d1", "d2").exit_code == 0
        listed = json.loads(command(tmp_path / "home", "teach", "list", "--json").stdout)
        assert [(pair["query"], pair["document"]) for pair in listed] == [(query, "d1"), (query, "d2")]
        for documents, left in ((["d1"], ["d2"]), ([], [])):
            done = command(tmp_path / "home", "teach", "rm", query, *documents)
            assert done.exit_code == 0, done.stderr[-1000:]
            _, answer = ask(server.url, "/indexes/notes/demonstrations")
            assert [pair["document"] for pair in answer["taught"]] == left
        unknown = command(tmp_path / "home", "teach", "rm", query)
        assert unknown.exit_code == 2 and "nothing is taught for the query 'otter" in unknown.stderr


def test_what_the_query_command_asks_too_much_of_is_said_in_its_own_words(served: SimpleNamespace) -> None:
    for option, value, most in (("-k", 5000, 1000), ("--offset", 20_000, 10_000)):
        done = command(served.home, "query", "the otter", option, str(value))
        assert done.exit_code == 2
        words = " ".join(done.stderr.split())
        assert f"{option} {value} is more than the {most:,} that the server at {served.url} allows" in words
        assert f"give {option} {most} or less, or stop the server" in words
    long = command(served.home, "query", "otter " * 2000)
    assert long.exit_code == 2 and "the query has 12,000 characters" in long.stderr
    busy = command(served.home, "indexes", "delete", "notes", "--yes")
    said = " ".join(busy.stderr.split())
    assert busy.exit_code == 2 and f"process {served.process.pid}, which serves it at {served.url}; " in said


def test_the_index_of_a_server_that_was_killed_is_free_again(home: Path) -> None:
    with server_process(home) as server:
        assert served_at(home / "notes") == server.url
        lesson = {"lessons": [{"query": "which bird", "documents": ["d1"]}]}
        assert ask(server.url, "/indexes/notes/demonstrations", lesson)[0] == 200
        server.process.kill()
        server.process.wait()
    alone = command(home, "query", "otter", "--json")
    assert alone.exit_code == 0, alone.stderr
    assert served_at(home / "notes") is None
    with server_process(home) as server:
        _, answer = ask(server.url, "/indexes/notes/demonstrations")
        assert [(pair["query"], pair["document"]) for pair in answer["taught"]] == [("which bird", "d1")]
        assert ask(server.url, "/indexes")[1]["indexes"][0]["documents"] == len(DOCUMENTS)


def test_sigterm_under_load_answers_every_accepted_request(home: Path) -> None:
    statuses: Counter[int] = Counter()
    lost: list[str] = []
    stop = threading.Event()

    with server_process(home) as server:

        def keep_asking(number: int) -> None:
            connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=240)
            for n in range(10_000):
                if connection.sock is None:
                    try:
                        connection.connect()
                    except OSError:
                        return  # nothing is accepted any more
                try:
                    body = json.dumps({"query": f"otter {number} {n}"})
                    connection.request("POST", "/search", body, {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    response.read()
                    statuses[response.status] += 1
                except (OSError, http.client.HTTPException) as error:
                    lost.append(repr(error))
                    return
            stop.set()

        with ThreadPoolExecutor(16) as clients:
            asked = [clients.submit(keep_asking, number) for number in range(16)]
            while statuses[200] < 50:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            for one in asked:
                one.result()
        assert server.process.wait(timeout=240) == 0
    assert not lost
    assert set(statuses) == {200}, statuses


def test_200_at_once_get_an_answer_or_429_and_then_it_goes_on(served: SimpleNamespace) -> None:
    barrier = threading.Barrier(200)

    def one(number: int) -> int:
        barrier.wait(timeout=240)
        texts = [f"an otter says {number} {n}" for n in range(20)]
        return ask(served.url, "/v1/embeddings", {"input": texts, "model": "tiny"})[0]

    with ThreadPoolExecutor(200) as clients:
        statuses = Counter(clients.map(one, range(200)))
    assert set(statuses) == {200, 429}, statuses
    assert statuses[200] >= 64
    assert ask(served.url, "/search", {"query": "otter"})[0] == 200


def batches(url: str) -> float:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(float(line.split()[1]) for line in lines if 'batch_size_count{worker="encoder"}' in line)


def test_concurrent_requests_share_batches(served: SimpleNamespace) -> None:
    alone = [ask(served.url, "/search", {"query": f"note {n}"})[1]["results"][0]["hits"] for n in range(4)]
    before = batches(served.url)
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda n: ask(served.url, "/search", {"query": f"note {n % 4}"}), range(128)))
    assert batches(served.url) - before < 128 / 2
    for n, (status, answer) in enumerate(answers):
        assert status == 200
        hits = answer["results"][0]["hits"]
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in alone[n % 4]], abs=0.01)


def test_the_teach_command_teaches_through_the_server(served: SimpleNamespace) -> None:
    taught = command(served.home, "teach", "which bird sleeps", "d1", "d8", "--json")
    assert (taught.exit_code, json.loads(taught.stdout)["total"]) == (0, 2), taught.stderr
    assert len(ask(served.url, "/indexes/notes/demonstrations")[1]["taught"]) == 2
    wrong = command(served.home, "teach", "which bird sleeps", "d1000")
    assert (wrong.exit_code, "no document 'd1000'" in wrong.stderr) == (2, True)
    assert command(served.home, "teach", "rm", "which bird sleeps", "d8").exit_code == 0
    listed = json.loads(command(served.home, "teach", "list", "--json").stdout)
    assert [pair["document"] for pair in listed] == ["d1"]
    assert command(served.home, "teach", "clear", "--yes").exit_code == 0
    assert ask(served.url, "/indexes/notes/demonstrations")[1]["taught"] == []


def test_what_is_no_http_and_what_comes_too_slowly(served: SimpleNamespace) -> None:
    def say(*parts: bytes) -> bytes:
        with socket.create_connection((urlsplit(served.url).hostname, urlsplit(served.url).port), timeout=240) as raw:
            try:
                for part in parts:
                    raw.sendall(part)
            except OSError:
                pass  # it has been told already
            answer = b""
            while more := raw.recv(65536):
                answer += more
            return answer

    for parts, status in [
        ((b"nonsense\r\n\r\n",), 400),
        ((b"GET /?" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",), 431),
        ((b"GET / HTTP/1.1\r\n", *[b"X-Header: " + b"x" * 4000 + b"\r\n"] * 200), 431),
        ((b"GET / HTTP/1.1\r\nHost: ",), 408),  # and then nothing
    ]:
        head, _, body = say(*parts).partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()), (parts[0], head)
        assert json.loads(body)["error"]["hint"]
    assert ask(served.url, "/search", {"query": "a" * 2**23})[0] == 413
    assert ask(served.url, "/healthz")[0] == 200


def test_a_client_that_goes_leaves_its_place(home: Path) -> None:
    with server_process(home, "--max-requests", "2") as server:
        body = json.dumps({"input": ["an otter " * 6] * 1000, "model": "tiny"}).encode()
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        for _ in range(4):
            with socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port)) as raw:
                raw.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        end = time.monotonic() + 60
        while ask(server.url, "/search", {"query": "otter"})[0] != 200:
            assert time.monotonic() < end
        log = server.log.read_text()
    assert " 499 " in log and "Traceback" not in log


def test_a_token_is_needed_to_listen_to_others_and_then_to_ask(home: Path) -> None:
    refused = command(home, "serve", "--host", "0.0.0.0")
    assert refused.exit_code == 2
    assert "there is no token; set EPIC_SEARCH_TOKEN" in refused.stderr
    with server_process(home, "--host", "0.0.0.0", "--log", "json", EPIC_SEARCH_TOKEN="secret-enough") as server:
        assert ask(server.url, "/search", {"query": "otter"})[0] == 401
        assert ask(server.url, "/search", {"query": "otter"}, Authorization="Bearer secret-enough")[0] == 200
        assert ask(server.url, "/indexes", Authorization="Bearer secret-enough", Host="evil.example")[0] == 403
        through = command(home, "query", "otter", "--json", token="secret-enough")
        assert through.exit_code == 0 and json.loads(through.stdout)["hits"], through.stderr
        without = command(home, "query", "otter")
        assert (without.exit_code, "set EPIC_SEARCH_TOKEN" in without.stderr) == (2, True)
        ask(server.url, "/%1b[31m?x=1", X_Request_Id="my-id")
        while "my-id" not in (log := server.log.read_text()):  # it is written after the answer
            time.sleep(0.01)
    assert "secret-enough" not in log and "otter" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert (lines[1]["method"], lines[1]["path"], lines[1]["status"]) == ("POST", "/search", 200)
    assert (lines[-1]["path"], lines[-1]["request_id"]) == ("/%1b[31m", "my-id")


def test_mistakes_before_the_server_starts(home: Path, served: SimpleNamespace) -> None:
    taken = str(urlsplit(served.url).port)
    for arguments, words in [
        (["nope"], "no index 'nope'"),
        (["--port", taken], "choose another with --port"),
        (["--host", "no.such.host.example", "--token", "x"], "is no address of this machine"),
        (["--token", "white space"], "printable ASCII"),
    ]:
        refused = command(home, "serve", *arguments)
        assert (refused.exit_code, refused.stdout) == (2, ""), arguments
        assert words in refused.stderr
