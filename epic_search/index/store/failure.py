"""What can go wrong with a request to a Qdrant server, in words, and whether to ask again."""

import json
import ssl
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["missing", "exists", "too large", "key", "other"]

PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
MESSAGE_LENGTH = 200
AGAIN = "what was stored is kept: repeat the command when the server is well"
WHICH = "check the URL"
KEY = "check the key and what it may do"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed.

    `what` goes after "the server" in a sentence. `passing`: the same request may succeed later, after `wait` seconds
    where the server said so. `answered`: it was a Qdrant server that said it.
    """

    what: str
    advice: str = AGAIN
    kind: Kind = "other"
    passing: bool = False
    answered: bool = True
    wait: float | None = None


def failure_of(error: Exception, timeout: float) -> Failure | None:
    """The failure behind an exception of the client; None for one that is no failure of the server's."""
    import grpc
    from pydantic import ValidationError
    from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    match error:
        case ResourceExhaustedResponse():
            return Failure("has too many requests (429)", passing=True, wait=float(error.retry_after_s))
        case QdrantException():  # a Retry-After that is a date
            return Failure("has too many requests (429)", passing=True)
        case UnexpectedResponse():
            return _of_status(error.status_code or 0, error.reason_phrase, _message(error.content))
        case ResponseHandlingException() if isinstance(error.source, ValidationError):
            return _unknown_answer()
        case ResponseHandlingException():
            return _of_transport(error.source, timeout)
        case json.JSONDecodeError():
            return _unknown_answer()
        case grpc.RpcError():
            return _of_grpc(error, timeout)
    return None


def _unknown_answer() -> Failure:
    what = "answered something that is not Qdrant's: another program, a proxy, or a version too far from the client's"
    return Failure(what, WHICH, answered=False)


def _of_status(status: int, reason: str, message: str) -> Failure:
    said = f"answered {status} ({message or reason})"
    match status:
        case 401 | 403:
            return Failure(f"refused the key: it {said}", KEY, kind="key")
        case 404:
            return Failure(said, WHICH, kind="missing", answered=bool(message))
        case 409:
            return Failure(said, kind="exists")
        case 413:
            return Failure(said, "its limit for one request is too small", kind="too large")
    if status in PASSING_STATUS:
        return Failure(said, passing=True)
    return Failure(said, "it may be of another version, or limited by its strict mode")


def _of_transport(source: Exception, timeout: float) -> Failure:
    import httpx

    if any(isinstance(cause, ssl.SSLError) for cause in _causes(source)) or "SSL" in str(source):
        return Failure(
            f"cannot be spoken to by TLS: {source}",
            "check the URL, and name the file of your own authority in SSL_CERT_FILE",
            answered=False,
        )
    match source:
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return Failure(
                f"cannot be reached: {source}", "check the URL, and that it runs", passing=True, answered=False
            )
        case httpx.TimeoutException():
            return Failure(
                f"did not answer within {timeout:g} s", f"{AGAIN}, or raise --timeout", passing=True, answered=False
            )
        case httpx.TransportError():
            return Failure(f"broke off: {source}", passing=True, answered=False)
    return Failure(f"cannot be asked: {source}", WHICH, answered=False)


def _of_grpc(error: Any, timeout: float) -> Failure:
    from grpc import StatusCode

    code, details = error.code(), str(error.details() or "")[:MESSAGE_LENGTH]
    said = f"answered {code.name} ({details})"
    match code:
        case StatusCode.UNAVAILABLE:
            return Failure(f"cannot be reached by gRPC: {details}", passing=True, answered=False)
        case StatusCode.DEADLINE_EXCEEDED:
            return Failure(
                f"did not answer within {timeout:g} s", f"{AGAIN}, or raise --timeout", passing=True, answered=False
            )
        case StatusCode.RESOURCE_EXHAUSTED | StatusCode.OUT_OF_RANGE if "larger than max" in details:
            return Failure(said, "its limit for one request is too small", kind="too large")
        case StatusCode.RESOURCE_EXHAUSTED | StatusCode.ABORTED | StatusCode.INTERNAL:
            return Failure(said, passing=True)
        case StatusCode.UNAUTHENTICATED | StatusCode.PERMISSION_DENIED:
            return Failure(f"refused the key: it {said}", KEY, kind="key")
        case StatusCode.NOT_FOUND:
            return Failure(said, WHICH, kind="missing")
        case StatusCode.ALREADY_EXISTS:
            return Failure(said, kind="exists")
    return Failure(said, "it may be of another version, or limited by its strict mode")


def _message(content: bytes) -> str:
    """What a Qdrant server says of an error; nothing where something else answered."""
    try:
        return str(json.loads(content)["status"]["error"])[:MESSAGE_LENGTH]
    except (ValueError, KeyError, TypeError):
        return ""


def _causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
