"""What is said when a request cannot be answered: always JSON, `{"error": {"type", "message", "hint", "position"}}`."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import JSONResponse

from epic_search.errors import Unavailable, UserError

RETRY = {"Retry-After": "1"}
TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "too_large",
    422: "invalid_request",
    429: "too_many_requests",
    431: "too_large",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}


class Problem(BaseModel):
    """`message`: what is wrong; `hint`: what to do about it; `position`: of the character of a filter that is wrong."""

    type: str
    message: str
    hint: str | None = None
    position: int | None = None


class ProblemAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: Problem


class ApiError(Exception):
    """A request that gets a status of 400 or above."""

    def __init__(
        self,
        status: int,
        message: str,
        hint: str | None = None,
        *,
        position: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(type=TYPES[status], message=message, hint=hint, position=position)
        self.headers = headers

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse({"error": self.problem.model_dump()}, self.status, headers=dict(self.headers or {}))


def busy() -> ApiError:
    """Too much waits already."""
    return ApiError(429, "too many requests wait already", "ask again after the seconds in Retry-After", headers=RETRY)


def late() -> ApiError:
    """There was no answer in time."""
    return ApiError(504, "there was no answer in time", "ask for less at once, or again later", headers=RETRY)


def of_user_error(error: UserError) -> ApiError:
    """What the search engine says to a user, whose last clause tells what to do."""
    message, _, hint = str(error).rpartition("; ")
    message, hint = (message, hint) if message else (hint, "")
    if isinstance(error, Unavailable):
        return ApiError(503, message, hint or None, headers=RETRY)
    return ApiError(422, message, hint or None, position=None if error.pointer is None else error.pointer[1])
