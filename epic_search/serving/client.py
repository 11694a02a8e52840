"""Asking a server of this machine: what the command line does where an index is served already.

The embedded engine is open in one process at a time, so while a server has an index, others ask the server for it.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from epic_search.errors import Unavailable, UserError
from epic_search.index.lock import LOCK_FILE, served_at
from epic_search.index.manifest import Manifest
from epic_search.index.taught_pair import Lesson, TaughtPair
from epic_search.serving.limits import BODY_BYTES, MAX_K, MAX_OFFSET, MAX_SUGGESTED, QUERY_CHARACTERS

if TYPE_CHECKING:
    from epic_search.index.answer import Answer, Facets, Question
    from epic_search.index.suggest import By, Suggestion

SECONDS = 300.0  # the server has its own, shorter limit
SUGGESTED_AT_ONCE = 200  # queries in a request, so that each is answered in time
TAUGHT_AT_ONCE, TAUGHT_BYTES = 64, BODY_BYTES // 2  # pairs in a request, for the same reason, and of its body


class Client:
    """Requests to one server. Raises UserError with what the server says is wrong."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, index: str, queries: Sequence[str], question: "Question") -> "tuple[list[Answer], Facets]":
        """As `answer.ask`, by POST /search; says what the command line asks too much of in its own words."""
        from epic_search.index.answer import Answer

        for option, value, most in (("-k", question.k, MAX_K), ("--offset", question.offset, MAX_OFFSET)):
            if value > most:
                raise UserError(
                    f"{option} {value} is more than the {most:,} that the server at {self.url} allows, which has the "
                    f"index open; give {option} {most} or less, or stop the server to search without that limit"
                )
        self._require_short(queries)
        asked = {name: value for name, value in asdict(question).items() if value is not None}
        if "demonstrations" not in asked and "demos" in asked:
            asked["demonstrations"] = asked["demos"]
        asked.pop("demos", None)
        found = self.search(asked | {"index": index, "queries": list(queries)})
        counts = {
            field: [(count["value"], count["documents"]) for count in values]
            for field, values in found["facets"].items()
        }
        return [Answer.from_json(result) for result in found["results"]], counts

    def search(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """POST /search."""
        return self._ask("POST", "/search", asked)

    def document(self, index: str, document_id: str) -> dict[str, Any]:
        """GET /indexes/{name}/documents/{id}."""
        return self._ask("GET", f"/indexes/{quote(index)}/documents/{quote(document_id, safe='')}")

    def demonstrations(self, index: str) -> dict[str, Any]:
        """GET /indexes/{name}/demonstrations."""
        return self._ask("GET", f"/indexes/{quote(index)}/demonstrations")

    def teach(self, index: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /indexes/{name}/demonstrations."""
        return self._ask("POST", f"/indexes/{quote(index)}/demonstrations", body)

    def forget(self, index: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /indexes/{name}/demonstrations/forget: a query may be too long for the address of a DELETE."""
        return self._ask("POST", f"/indexes/{quote(index)}/demonstrations/forget", body)

    def suggest(self, index: str, queries: Sequence[str] | None, *, count: int, by: "By | None") -> "list[Suggestion]":
        """As `suggest.suggest`, by POST /indexes/{name}/suggestions; more queries than it takes are asked in parts.

        A margin is a query's own, so the best of all are among the best of their parts. Coverage compares all queries
        with each other: raises UserError for more than the server takes.
        """
        from epic_search.index.searcher import Hit
        from epic_search.index.suggest import Suggestion, not_taught

        parts: list[list[str] | None] = [None]
        if queries is not None:
            self._require_short(queries)
            left = not_taught(queries, {pair.query for pair in _pairs(self.demonstrations(index)["taught"])})
            size = MAX_SUGGESTED if by == "coverage" else SUGGESTED_AT_ONCE
            if by == "coverage" and len(left) > size:
                raise UserError(
                    f"--by coverage compares all {len(left):,} queries with each other, and the server at {self.url}, "
                    f"which has the index open, takes {size:,}; give so many or fewer, choose --by margin, or stop the "
                    "server"
                )
            parts = [left[start : start + size] for start in range(0, len(left), size)]
        most = min(count, MAX_SUGGESTED)  # no part has more
        found = [
            Suggestion(**one | {"hit": Hit(**one["hit"])})
            for part in parts
            for one in self._ask(
                "POST", f"/indexes/{quote(index)}/suggestions", {"queries": part, "count": most, "by": by}
            )["suggestions"]
        ]
        return found if len(parts) == 1 else sorted(found, key=lambda suggestion: suggestion.margin)[:count]

    def _require_short(self, queries: Sequence[str]) -> None:
        if longest := max((len(query) for query in queries if len(query) > QUERY_CHARACTERS), default=0):
            raise UserError(
                f"the query has {longest:,} characters, and the server at {self.url}, which has the index open, reads "
                f"{QUERY_CHARACTERS:,}; give a shorter one, or stop the server"
            )

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("EPIC_SEARCH_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        # Straight to this machine: a proxy that the environment names has no part in this.
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=SECONDS)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise Unavailable(
                f"the server at {self.url} does not answer ({error}); look at its log, or stop it"
            ) from error
        finally:
            connection.close()
        if response.status == 401:
            raise UserError(f"the server at {self.url} wants its token; set EPIC_SEARCH_TOKEN to it")
        if response.status >= 400:
            problem = answer["error"]
            if response.status == 404 and problem["message"].startswith("there is nothing at"):
                raise UserError(
                    f"the server at {self.url}, which has the index open, is of an older epic-search and cannot do "
                    f"this (it has no {method} {path}); stop it and start it again with this version"
                )
            pointer = (body["filter"], problem["position"]) if body and problem["position"] is not None else None
            raise UserError(f"{problem['message']}{'; ' + problem['hint'] if problem['hint'] else ''}", pointer=pointer)
        return dict(answer)


class ServedTeaching:
    """What `Searcher` has for teaching, done by the server that has the index in `folder` open."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        self._folder = folder

    @property
    def manifest(self) -> Manifest:
        """What the index is now."""
        return Manifest.load(self._folder)

    def teach_all(self, lessons: Sequence[Lesson]) -> list[TaughtPair]:
        """See Searcher; more than a server takes at a time goes in parts, of which those before a mistake stay."""
        taught: list[TaughtPair] = []
        done = 0
        for part in _parts(lessons):
            try:
                taught += _pairs(self._client.teach(self._folder.name, {"lessons": part})["taught"])
            except UserError as error:
                if not done:
                    raise
                then = "" if isinstance(error, Unavailable) else "correct it and "
                raise type(error)(
                    f"{error}; the {done:,} pairs before are taught: {then}repeat the command, which teaches none twice"
                ) from error
            done += len(part)
        return taught

    def taught(self) -> list[TaughtPair]:
        """See Searcher."""
        return _pairs(self._client.demonstrations(self._folder.name)["taught"])

    def forget(self, query: str, document_ids: Sequence[str] = ()) -> list[TaughtPair]:
        """See Searcher."""
        gone = self._client.forget(self._folder.name, {"query": query, "labels": list(document_ids)})
        return _pairs(gone["forgotten"])

    def forget_all(self) -> int:
        """See Searcher."""
        return len(self._client.forget(self._folder.name, {"everything": True})["forgotten"])

    def suggest(self, queries: Sequence[str] | None, *, count: int, by: "By | None") -> "list[Suggestion]":
        """See `suggest.suggest`."""
        return self._client.suggest(self._folder.name, queries, count=count, by=by)

    def __enter__(self) -> "ServedTeaching":
        return self

    def __exit__(self, *_: object) -> None:
        """The server keeps the index open."""


def _parts(lessons: Sequence[Lesson]) -> Iterator[list[dict[str, Any]]]:
    """Lessons as the server reads them, as many at a time as it takes."""
    part: list[dict[str, Any]] = []
    size = 0
    for lesson in lessons:
        right = {"passage": lesson.passage} if lesson.document is None else {"documents": [lesson.document]}
        said = {"query": lesson.query, **right}
        length = len(json.dumps(said))
        if part and (len(part) == TAUGHT_AT_ONCE or size + length > TAUGHT_BYTES):
            yield part
            part, size = [], 0
        part.append(said)
        size += length
    if part:
        yield part


def _pairs(said: Sequence[dict[str, Any]]) -> list[TaughtPair]:
    return [TaughtPair(**{name: value for name, value in pair.items() if name != "label"}) for pair in said]


def server_of(folder: Path) -> Client | None:
    """The server of this machine that has the index open; None where there is none."""
    url = served_at(folder)
    if url is None:
        return None
    address = urlsplit(url)
    if not _is_this_machine(address.hostname or ""):
        raise UserError(f"the lock of {folder} names a server elsewhere ({url}); remove {LOCK_FILE} there")
    try:
        socket.create_connection((address.hostname, address.port), timeout=SECONDS).close()
    except ConnectionRefusedError:
        return None  # it was killed, and its store is about to end, too: to open the index waits for that
    return Client(url)


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
