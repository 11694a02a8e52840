"""What is answered, and what is said to those who ask for what cannot be: always JSON, never a 500."""

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_helpers import HOSTILE, Open

from epic_search.encoder import Encoder
from epic_search.errors import UserError
from epic_search.index import Searcher, delete_index, index_corpus
from epic_search.index.answer import Question, ask
from epic_search.serving import schemas
from epic_search.serving.client import server_of
from epic_search.serving.mcp import Tools

TOKEN = "correct-horse"


@contextmanager
def stuck(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Queries are encoded only after the block; the event says that one is waiting for that."""
    started, go = threading.Event(), threading.Event()
    encode = type(encoder).encode_queries

    def slow(self: Encoder, *arguments: Any, **options: Any) -> np.ndarray:
        started.set()
        assert go.wait(timeout=240)
        return encode(self, *arguments, **options)

    monkeypatch.setattr(type(encoder), "encode_queries", slow)
    try:
        yield started
    finally:
        go.set()


def test_a_search_answers_as_the_searcher_does(open_app: Open, home: Path, tiny_encoder: Encoder) -> None:
    queries = ["the otter", "of note 5"]
    question = Question(k=3, filter="number>=3", facets=["number"], explain=True, task="find notes", boost=0.5)
    with Searcher.open("notes", home=home, encoder=tiny_encoder) as searcher:
        expected, facets = ask(searcher, queries, question)
    body = {"queries": queries, "k": 3, "filter": "number>=3", "facets": ["number"], "explain": True}
    answer = open_app().client.post("/search", json=body | {"task": "find notes", "boost": 0.5}).json()
    for mine, theirs in zip(answer["results"], [each.as_json() for each in expected], strict=True):
        assert [hit["id"] for hit in mine["hits"]] == [hit["id"] for hit in theirs["hits"]]
        assert mine["hits"][0]["explanation"]["words"] == theirs["hits"][0]["explanation"]["words"]
        assert mine["taught"]["ranks"] == theirs["taught"]["ranks"]
    assert [(count["value"], count["documents"]) for count in answer["facets"]["number"]] == facets["number"]
    assert (answer["index"], answer["offset"]) == ("notes", 0)


def test_lexical_search_pages_and_least_scores(open_app: Open) -> None:
    client = open_app().client
    everything = client.post("/search", json={"query": "otter", "mode": "lexical", "k": 10}).json()["results"][0]
    assert [hit["title"] for hit in everything["hits"]] and everything["mode"] == "lexical"
    second = client.post("/search", json={"query": "otter", "mode": "lexical", "k": 1, "offset": 1}).json()
    assert second["results"][0]["hits"] == everything["hits"][1:2]
    none = client.post("/search", json={"query": "otter", "mode": "lexical", "min_score": 1000}).json()
    assert none["results"][0]["hits"] == []


def test_hostile_text_comes_back_as_json_and_nothing_else(open_app: Open) -> None:
    answer = open_app().client.get("/indexes/notes/documents/a%2Fb%20c%3F")
    assert answer.json()["passages"] == [HOSTILE]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "\x1b" not in answer.text


BAD = {
    "malformed": ("/search", b'{"query": ', 400, "not JSON"),
    "not utf-8": ("/search", b'{"query": "\xff"}', 400, "JSON"),
    "deep": ("/search", b'{"query": ' + b"[" * 100_000, 400, "JSON"),
    "no object": ("/search", b"[]", 422, "not a JSON object"),
    "nothing": ("/search", b"", 422, "no body"),
    "no query": ("/search", b"{}", 422, "either 'query' or 'queries'"),
    "two queries": ("/search", b'{"query": "a", "queries": ["b"]}', 422, "either 'query' or 'queries'"),
    "empty query": ("/search", b'{"query": "  "}', 422, "the query is empty"),
    "lone surrogate": ("/search", rb'{"query": "\ud800"}', 422, "unicode"),
    "unknown key": ("/search", b'{"query": "a", "kk": 1}', 422, "there is no 'kk'"),
    "wrong type": ("/search", b'{"query": "a", "k": "10"}', 422, "valid integer"),
    "a truth for a number": ("/search", b'{"query": "a", "k": true}', 422, "valid integer"),
    "huge k": ("/search", b'{"query": "a", "k": 1000000000}', 422, "less than or equal to 1000"),
    "no k": ("/search", b'{"query": "a", "k": 0}', 422, "greater than or equal to 1"),
    "huge offset": ("/search", b'{"query": "a", "offset": 1e30}', 422, "integer"),
    "not a number": ("/search", b'{"query": "a", "min_score": NaN}', 422, "finite"),
    "unknown mode": ("/search", b'{"query": "a", "mode": "magic"}', 422, "'hybrid', 'dense' or 'lexical'"),
    "unknown index": ("/search", b'{"query": "a", "index": "../notes"}', 404, "no index '../notes' is served"),
    "filter with a typo": ("/search", b'{"query": "a", "filter": "number > > 3"}', 422, "filter"),
    "unknown field": ("/search", b'{"query": "a", "filter": "colour = red"}', 422, "colour"),
    "unknown facet": ("/search", b'{"query": "a", "facets": ["colour"]}', 422, "colour"),
    "lexical with a task": ("/search", b'{"query": "otter", "mode": "lexical", "task": "t"}', 422, "lexical search"),
    "only stop words": ("/search", b'{"query": "the", "mode": "lexical"}', 422, "stop words"),
    "half a demonstration": ("/search", b'{"query": "a", "demonstrations": [{"query": "b"}]}', 422, "passage"),
    "huge query": ("/search", b'{"query": "' + b"a" * 10_001 + b'"}', 422, "at most 10000 characters"),
    "oversized body": ("/search", b'{"query": "' + b"a" * 2**23 + b'"}', 413, "larger than"),
    "huge body": ("/search", b"a" * 2**27, 413, "larger than"),
    "no model": ("/v1/embeddings", b'{"input": "a"}', 422, "'model' is missing"),
    "unknown model": ("/v1/embeddings", b'{"input": "a", "model": "gpt"}', 404, "no model 'gpt'"),
    "empty text": ("/v1/embeddings", b'{"input": ["a", " "], "model": "tiny"}', 422, "text 1 of 'input' is empty"),
    "long text": ("/v1/embeddings", b'{"input": "' + b"a" * 65 + b'", "model": "tiny"}', 422, "has 65 tokens"),
    "token ids": ("/v1/embeddings", b'{"input": [[1, 2]], "model": "tiny"}', 422, "token ids"),
    "a number for a text": ("/v1/embeddings", b'{"input": 5, "model": "tiny"}', 422, "neither a text nor a list of"),
    "a number among texts": ("/v1/embeddings", b'{"input": ["a", 5], "model": "tiny"}', 422, "'input.1' in the body"),
    "a truth among texts": ("/v1/embeddings", b'{"input": [true], "model": "tiny"}', 422, "'input.0' in the body"),
    "no text at all": ("/v1/embeddings", b'{"input": "", "model": "tiny"}', 422, "'input' in the body: string should"),
    "odd demonstrations": ("/search", b'{"query": "a", "demonstrations": 5}', 422, "neither a word nor a list of"),
    "odd pair": ("/search", b'{"query": "a", "demonstrations": [5]}', 422, "'demonstrations.0' in the body is 5: "),
    "no texts": ("/v1/embeddings", b'{"input": [], "model": "tiny"}', 422, "at least 1"),
    "untrained width": ("/v1/embeddings", b'{"input": "a", "model": "tiny", "dimensions": 7}', 422, "64 dimensions"),
    "task of a passage": ("/v1/embeddings", b'{"input": "a", "model": "tiny", "task": "t"}', 422, "without a task"),
    "unknown document": (
        "/indexes/notes/demonstrations",
        b'{"lessons": [{"query": "a", "documents": ["nope"]}]}',
        422,
        "no document 'nope'",
    ),
    "nothing is right": ("/indexes/notes/demonstrations", b'{"lessons": [{"query": "a"}]}', 422, "either 'documents'"),
    "teach another index": (
        "/indexes/nope/demonstrations",
        b'{"lessons": [{"query": "a", "documents": ["d1"]}]}',
        404,
        "no index 'nope'",
    ),
}


def test_bad_input_is_told_what_is_wrong_and_what_to_do(open_app: Open) -> None:
    client = open_app().client
    for what, (path, body, status, words) in BAD.items():
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, (what, answer.text)
        error = answer.json()["error"]
        assert words in error["message"], (what, error)
        assert error["hint"] or error["position"] is not None, (what, error)
        assert answer.headers["x-request-id"], what


def test_a_key_that_is_no_key_gets_the_keys_there_are(open_app: Open) -> None:
    error = open_app().client.post("/search", json={"query": "a", "filtre": "x"}).json()["error"]
    assert error["hint"].startswith("did you mean 'filter'? allowed are query, queries, index, k, ")
    assert set(schemas.SearchRequest.model_fields) == set(error["hint"].split("allowed are ")[1].split(", "))


def test_a_filter_s_mistake_is_pointed_at(open_app: Open) -> None:
    error = open_app().client.post("/search", json={"query": "a", "filter": "number>=3 und number<5"}).json()["error"]
    assert error["position"] == len("number>=3 ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/search", 405),
        ("GET", "/indexes/notes/documents/nope", 404),
        ("GET", "/indexes/nope/documents/d1", 404),
        ("DELETE", "/indexes/notes/demonstrations", 422),
        ("DELETE", "/indexes/notes/demonstrations?query=never", 422),
        ("DELETE", "/indexes/notes/demonstrations?everything=perhaps", 422),
        ("DELETE", "/indexes/notes/demonstrations?everything=true&label=d1", 422),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/page/../../app.py", 404),
    ],
)
def test_what_is_not_there(open_app: Open, method: str, path: str, status: int) -> None:
    answer = open_app().client.request(method, path)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


def test_teaching_changes_related_queries_at_once_and_can_be_taken_back(open_app: Open) -> None:
    client = open_app().client

    def ranks() -> list[str]:
        body = {"query": "which bird sleeps", "k": 29, "mode": "dense"}
        return [hit["id"] for hit in client.post("/search", json=body).json()["results"][0]["hits"]]

    before = ranks()
    last = before[-1]
    start = time.monotonic()
    taught = client.post(
        "/indexes/notes/demonstrations", json={"lessons": [{"query": "which bird sleeps", "documents": [last, last]}]}
    ).json()
    after = ranks()
    assert time.monotonic() - start < 10
    assert after.index(last) < before.index(last)
    assert (len(taught["taught"]), taught["known"], taught["total"]) == (1, 0, 1)
    assert client.get("/indexes/notes/demonstrations").json()["taught"] == taught["taught"]
    gone = client.delete(
        "/indexes/notes/demonstrations", params={"query": "which bird sleeps", "label": taught["taught"][0]["label"]}
    ).json()
    assert (gone["forgotten"], gone["total"]) == (taught["taught"], 0)
    assert ranks() == before


@pytest.mark.parametrize("which", [{"everything": True}, {"query": "birds", "labels": ["d5"]}, {"query": "fish"}])
def test_what_is_taught_can_be_forgotten_by_address_and_by_body(open_app: Open, which: dict[str, Any]) -> None:
    client = open_app().client
    path = "/indexes/notes/demonstrations"
    lessons = [{"query": "birds", "documents": ["d1", "d5"]}, {"query": "fish", "passage": "The trout swims."}]
    in_address = {"label" if name == "labels" else name: value for name, value in which.items()}
    gone = []
    for forget in (lambda: client.delete(path, params=in_address), lambda: client.post(f"{path}/forget", json=which)):
        assert client.post(path, json={"lessons": lessons}).json()["total"] == 3
        answer = forget().json()
        gone.append([(pair["query"], pair["document"]) for pair in answer["forgotten"]])
        assert len(gone[-1]) == 3 - answer["total"] > 0
    assert gone[0] == gone[1]


@pytest.mark.parametrize(
    "body", [{}, {"query": "a", "everything": True}, {"everything": True, "labels": ["d1"]}, {"query": "never"}]
)
def test_what_is_to_be_forgotten_must_be_clear(open_app: Open, body: dict[str, Any]) -> None:
    answer = open_app().client.post("/indexes/notes/demonstrations/forget", json=body)
    assert (answer.status_code, set(answer.json())) == (422, {"error"})


def test_embeddings_are_those_of_the_encoder(open_app: Open, tiny_encoder: Encoder) -> None:
    client = open_app().client
    body = {"input": ["an otter", "a lynx"], "model": "tiny"}
    passages = client.post("/v1/embeddings", json=body).json()
    vectors_NE = np.array([row["embedding"] for row in passages["data"]])
    assert np.allclose(vectors_NE, tiny_encoder.encode_passages(body["input"]), atol=1e-5)
    assert [row["index"] for row in passages["data"]] == [0, 1]
    tokens = sum(len(ids) for ids in tiny_encoder.token_ids(body["input"]))
    assert passages["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    queries = client.post("/v1/embeddings", json=body | {"input_type": "query", "task": "find animals"}).json()
    expected_NE = tiny_encoder.encode_queries(body["input"], prompt=tiny_encoder.prompt(task="find animals"))
    assert np.allclose(np.array([row["embedding"] for row in queries["data"]]), expected_NE, atol=1e-5)


def test_the_map_places_documents_of_very_long_ids(home: Path, open_app: Open, tiny_encoder: Encoder) -> None:
    ids = [f"{n}/" + "\N{OTTER}" * 1000 for n in range(100)]
    corpus = home.parent / "long.jsonl"
    corpus.write_text("".join(json.dumps({"_id": id, "text": f"The otter {id[:2]}"}) + "\n" for id in ids))
    index_corpus(corpus, name="long", encoder=tiny_encoder, home=home)
    client = open_app(names=("long",)).client
    found = client.post("/indexes/long/map", json={"documents": [*reversed(ids), "gone"]}).json()
    assert found["ids"] == ids[::-1]
    assert len(found["x"]) == len(found["y"]) == 100
    for body in ({}, {"documents": []}, {"documents": [5]}, {"documents": ["1"] * 201}):
        assert client.post("/indexes/long/map", json=body).status_code == 422


def test_a_tool_that_reads_a_document_asks_which_index_has_it(home: Path, tiny_encoder: Encoder) -> None:
    def tools(*names: str) -> Tools:
        return Tools(names, home=home, load=lambda manifest: tiny_encoder)

    assert tools("notes").get(None, "d1").title == "Note 1"
    assert tools("birds", "notes").get("notes", "d1").title == "Note 1"
    with pytest.raises(UserError, match=r"which index has 'd1'\? give 'index', one of notes, birds"):
        tools("notes", "birds").get(None, "d1")


def test_indexes_health_and_metrics(open_app: Open) -> None:
    client = open_app().client
    (index,) = client.get("/indexes").json()["indexes"]
    assert (index["name"], index["documents"], index["fields"]["number"]) == ("notes", 29, "int")
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    client.post("/search", json={"query": "otter"})
    client.get("/somewhere/else")
    text = client.get("/metrics").text
    assert 'epic_search_requests_total{method="POST",route="/search",status="200"} 1.0' in text
    assert 'epic_search_requests_total{method="other",route="other",status="404"} 1.0' in text
    assert "somewhere" not in text
    assert 'epic_search_batch_size_count{worker="encoder"} 1.0' in text


def test_the_documentation_asks_nobody_else_for_anything(open_app: Open) -> None:
    client = open_app().client
    page = client.get("/docs").text
    sources = [part.split('"')[0] for attribute in ('src="', 'href="') for part in page.split(attribute)[1:]]
    assert sources and all(source.startswith("/") for source in sources)
    assert all(client.get(source).status_code == 200 for source in sources)
    assert client.get("/").status_code == 200


def test_more_requests_than_places_are_told_to_come_again(
    open_app: Open, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(places=3)
    with ThreadPoolExecutor(20) as threads:
        with stuck(tiny_encoder, monkeypatch) as started:
            asked = [threads.submit(app.client.post, "/search", json={"query": f"otter {n}"}) for n in range(20)]
            assert started.wait(timeout=240)
            while sum(one.done() for one in asked) < 17:
                time.sleep(0.01)
            assert app.client.get("/healthz").status_code == 200
        answers = [one.result() for one in asked]
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [429] * 17
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.headers["retry-after"], refused.json()["error"]["type"]) == ("1", "too_many_requests")
    assert app.client.post("/search", json={"query": "otter"}).status_code == 200
    assert app.gate.inside == 0


def test_a_request_that_takes_too_long_is_told_so(
    open_app: Open, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(seconds=0.2)
    with stuck(tiny_encoder, monkeypatch):
        answer = app.client.post("/search", json={"query": "otter"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout")
    while app.gate.inside:
        time.sleep(0.01)


def test_an_index_that_is_deleted_while_it_is_served(open_app: Open, home: Path) -> None:
    app = open_app()
    assert app.client.post("/search", json={"query": "otter"}).status_code == 200
    aside = home.parent / "aside"
    shutil.copytree(home / "notes", aside)
    app.shelf.announce("http://127.0.0.1:1")
    shutil.rmtree(home / "notes")
    answer = app.client.post("/search", json={"query": "otter"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
    assert "not there any more" in answer.json()["error"]["message"]
    assert app.client.get("/indexes").json() == {"indexes": []}
    shutil.copytree(aside, home / "notes")  # and made again
    assert app.client.post("/search", json={"query": "otter"}).status_code == 200


def test_a_store_that_dies_is_told_as_such_and_opened_again(open_app: Open) -> None:
    app = open_app()
    with app.shelf.use("notes") as searcher:
        store = searcher._contents.store
        store._process.kill()
        store._process.wait()
    answer = app.client.post("/search", json={"query": "otter"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable")
    assert app.client.post("/search", json={"query": "otter"}).status_code == 200


def test_a_served_index_is_announced_as_long_as_it_is_served(open_app: Open, home: Path) -> None:
    assert server_of(home / "notes") is None
    app = open_app()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app.shelf.announce(url)
        found = server_of(home / "notes")
        assert found is not None and found.url == url
        app.service.close()
        assert server_of(home / "notes") is None
    delete_index("notes", home)


def test_the_token(open_app: Open) -> None:
    client = open_app(token=TOKEN).client
    body = {"query": "otter"}
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer ütf"}):
        answer = client.post("/search", json=body, headers={k: v.encode() for k, v in header.items()})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), header
    assert client.post("/search", json=body, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert [client.get(path).status_code for path in ("/healthz", "/", "/docs")] == [200] * 3
    assert [client.get(path).status_code for path in ("/metrics", "/indexes", "/v1/models")] == [401] * 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8080"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "search.example"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": "127.0.0.1.rebound.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://127.0.0.1:8080"}, 200),
        ({"Origin": "https://page.example"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_names_and_pages_that_may_ask(open_app: Open, headers: dict[str, str], status: int) -> None:
    client = open_app(hosts=["search.example"], origins=["https://page.example"]).client
    assert client.get("/indexes", headers=headers).status_code == status


def test_a_body_that_is_sent_in_pieces_has_the_same_limit(open_app: Open) -> None:
    client = open_app(body_bytes=1000).client
    answer = client.post("/search", content=(b"x" * 100 for _ in range(100)))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


def test_a_body_that_comes_too_slowly(open_app: Open) -> None:
    asgi = open_app(body_seconds=0.1).service.asgi
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message: Any) -> None:
        said.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": "/search", "raw_path": b"/search", "headers": headers}
    asyncio.run(asgi(scope, receive, send))
    assert said[0]["status"] == 408
    assert (b"connection", b"close") in said[0]["headers"]
