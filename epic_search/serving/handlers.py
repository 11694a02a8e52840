"""Every exception of a request as the answer that `problems` has for it, so that none ends in a traceback."""

import json
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from epic_search.errors import UserError
from epic_search.serving.batcher import Full
from epic_search.serving.gate import CLIENT_HAS_GONE, ClientHasGone
from epic_search.serving.problems import ApiError, busy, late, of_user_error
from epic_search.serving.schemas import TAGS
from epic_search.serving.ticket import Late


def install(app: FastAPI) -> None:
    """Make the app say all of its errors so."""

    @app.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def of_user(request: Request, error: UserError) -> JSONResponse:
        return of_user_error(error).response()

    @app.exception_handler(Full)
    async def of_full(request: Request, error: Full) -> JSONResponse:
        return busy().response()

    @app.exception_handler(Late)
    async def of_late(request: Request, error: Late) -> JSONResponse:
        return late().response()

    @app.exception_handler(ClientHasGone)
    async def of_gone(request: Request, error: ClientHasGone) -> Response:
        return Response(status_code=CLIENT_HAS_GONE)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code
        if status == 404:
            message, hint = f"there is nothing at {request.url.path}", "GET /docs lists what there is"
        elif status == 405:
            message, hint = f"{request.method} is not allowed at {request.url.path}", "GET /docs lists what there is"
        elif status == 400:
            message, hint = "the body cannot be read as JSON", "send one JSON object in UTF-8"
        else:
            message, hint = HTTPStatus(status).phrase.lower(), ""
        return ApiError(status, message, hint or None, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def of_bug(request: Request, error: Exception) -> JSONResponse:
        return ApiError(
            500,
            "something went wrong in the server",
            f"the server's log has the details under {request.state.request_id}",
        ).response()


def _of_validation(errors: Any) -> ApiError:
    """The first mistake that pydantic found, in words."""
    first = errors[0]
    source, *path = first["loc"]
    where = ".".join(str(part) for part in path if part not in TAGS)
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", "send one JSON object in UTF-8")
        case "missing" if not path:
            return ApiError(422, "the request has no body", "send a JSON object, with Content-Type: application/json")
        case "model_attributes_type" | "dict_type" if not path:
            hint = "send one, with Content-Type: application/json"
            return ApiError(422, "the body is not a JSON object", hint)
        case "allowed_keys":
            return ApiError(422, first["msg"], first["ctx"]["hint"])
        case "neither":
            said, _, hint = str(first["msg"]).partition("; ")
            return ApiError(422, said, hint)
        case "missing":
            return ApiError(422, f"'{where}' is missing in the {source}", "GET /docs tells what belongs there")
    message = f"{first['msg'][:1].lower()}{first['msg'][1:]}".replace(" after validation", "")
    said = re.sub(r"a valid dictionary or .*", "an object", message)
    if where:
        given = json.dumps(first["input"]) if isinstance(first["input"], bool | int | float) else ""
        said = f"'{where}' in the {source}{given and f' is {given}'}: {said}"
    return ApiError(422, said, "GET /docs tells what is allowed")
