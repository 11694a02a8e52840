"""The HTTP interface: which path answers what. What stands around it (security, log, limits) is added here too."""

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp

from epic_search import __version__
from epic_search.serving import answers, handlers, limits, page_files, problems, schemas
from epic_search.serving.gate import Gate
from epic_search.serving.log import Journal, LogStyle
from epic_search.serving.metrics import Metrics
from epic_search.serving.problems import ApiError, ProblemAnswer
from epic_search.serving.security import Access, Guard
from epic_search.serving.shelf import Shelf

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer, "description": problems.TYPES[status]}
    for status in (400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)
}
DESCRIPTION = """\
Search by meaning, in indexes that learn the task from example pairs. Errors are `{"error": {"type", "message",
"hint"}}`. Where the server has a token, send it as `Authorization: Bearer TOKEN`."""


class Service:
    """One server's app and what is behind it. `asgi` is the app with all that stands around it."""

    def __init__(self, shelf: Shelf, *, gate: Gate, access: Access, metrics: Metrics, log: LogStyle) -> None:
        self.shelf = shelf
        self.gate = gate
        self.metrics = metrics
        self.is_draining = False
        metrics.watch("requests_inside", "Requests being answered, or waiting for that.", lambda: float(gate.inside))
        self.app = FastAPIOffline(
            title="epic-search", version=__version__, description=DESCRIPTION, redoc_url=None, responses=ERRORS
        )
        handlers.install(self.app)
        _add_search(self.app, self)
        _add_indexes(self.app, self)
        _add_health(self.app, self)
        page_files.install(self.app)
        self.asgi: ASGIApp = Journal(Guard(self.app, access=access), metrics=metrics, style=log)

    def close(self) -> None:
        """Answer those who are inside, then close the indexes."""
        self.gate.close()
        self.shelf.close()


def _add_search(app: FastAPI, service: Service) -> None:
    gate, shelf = service.gate, service.shelf

    @app.post("/search", tags=["search"])
    async def search(request: Request, body: schemas.SearchRequest) -> schemas.SearchAnswer:
        """The documents that answer a query, or several, best first."""
        return await gate.answer(request, lambda: answers.search(shelf, body))

    @app.post("/v1/embeddings", tags=["embeddings"])
    async def embeddings(request: Request, body: schemas.EmbeddingRequest) -> schemas.EmbeddingsAnswer:
        """Vectors of texts, as OpenAI's interface has it."""
        return await gate.answer(request, lambda: answers.embeddings(shelf, body))

    @app.get("/v1/models", tags=["embeddings"])
    async def models() -> schemas.ModelsAnswer:
        """The encoders that can be asked for vectors."""
        return answers.models(shelf)

    @app.get("/v1/models/{model:path}", tags=["embeddings"])
    async def model(model: str) -> schemas.ModelAnswer:
        """One of them."""
        return answers.model(shelf, model)


def _add_indexes(app: FastAPI, service: Service) -> None:
    gate, shelf = service.gate, service.shelf

    @app.get("/indexes", tags=["indexes"])
    async def indexes(request: Request) -> schemas.IndexesAnswer:
        """The indexes that can be searched, the default first."""
        return await gate.answer(request, lambda: answers.indexes(shelf))

    @app.get("/indexes/{name}/documents/{document_id:path}", tags=["indexes"])
    async def document(request: Request, name: str, document_id: str) -> schemas.DocumentAnswer:
        """A document with all its passages."""
        return await gate.answer(request, lambda: answers.document(shelf, name, document_id))

    @app.get("/indexes/{name}/map", tags=["indexes"])
    async def corpus_map(request: Request, name: str) -> schemas.MapAnswer:
        """Documents in a plane: a sample of all."""
        return await gate.answer(request, lambda: answers.corpus_map(shelf, name))

    @app.post("/indexes/{name}/map", tags=["indexes"])
    async def places(request: Request, name: str, body: schemas.PlacesRequest) -> schemas.MapAnswer:
        """Where in that plane documents lie; those that are not in the index are left out."""
        return await gate.answer(request, lambda: answers.corpus_map(shelf, name, body.documents))

    @app.get("/indexes/{name}/demonstrations", tags=["demonstrations"])
    async def demonstrations(request: Request, name: str) -> schemas.DemonstrationsAnswer:
        """What an index was taught, oldest first."""
        return await gate.answer(request, lambda: answers.demonstrations(shelf, name))

    @app.post("/indexes/{name}/demonstrations", tags=["demonstrations"])
    async def teach(request: Request, name: str, body: schemas.TeachRequest) -> schemas.TeachAnswer:
        """Teach what is right for queries; related queries are answered accordingly at once."""
        return await gate.answer(request, lambda: answers.teach(shelf, name, body))

    @app.post("/indexes/{name}/suggestions", tags=["demonstrations"])
    async def suggest(request: Request, name: str, body: schemas.SuggestRequest) -> schemas.SuggestAnswer:
        """What is worth teaching next: queries to judge, each with its best hit."""
        return await gate.answer(request, lambda: answers.suggest(shelf, name, body))

    @app.delete("/indexes/{name}/demonstrations", tags=["demonstrations"])
    async def forget(
        request: Request,
        name: str,
        query: Annotated[str | None, Query(description="Its pairs go.", max_length=limits.TEXT_CHARACTERS)] = None,
        label: Annotated[list[str] | None, Query(description="Only its pairs with these labels.")] = None,
        everything: Annotated[bool, Query(description="All pairs go, of all queries.")] = False,
    ) -> schemas.ForgottenAnswer:
        """Take back what was taught for a query, or everything."""
        gone = schemas.ForgetRequest.model_construct(query=query, labels=label or [], everything=everything)
        return await gate.answer(request, lambda: answers.forget(shelf, name, gone))

    @app.post("/indexes/{name}/demonstrations/forget", tags=["demonstrations"])
    async def forget_by_body(request: Request, name: str, body: schemas.ForgetRequest) -> schemas.ForgottenAnswer:
        """The same, for a query that is too long for an address."""
        return await gate.answer(request, lambda: answers.forget(shelf, name, body))


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> schemas.StatusAnswer:
        """Whether the process answers."""
        return schemas.StatusAnswer(status="ok")

    @app.get("/readyz", tags=["health"])
    async def readyz() -> schemas.StatusAnswer:
        """Whether new requests should be sent here: not while the server is stopping."""
        if service.is_draining:
            raise ApiError(503, "the server is stopping", "ask another one", headers=problems.RETRY)
        return schemas.StatusAnswer(status="ready")

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
