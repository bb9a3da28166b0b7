"""Errors in OpenAI's shape: the one place where exceptions become HTTP answers."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import msgspec
from aiohttp import web

from core.errors import CoreError, EngineDead, QueueFull, RequestError
from core.logs import get_logger
from core.server.paths import path_of

log = get_logger("server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = web.RequestKey("request_id", str)
IGNORED_FIELDS: web.RequestKey[list[str]] = web.RequestKey("ignored_fields", list)
#: Status in the log when the client has gone before its answer (nginx has it too); nobody receives it.
CLIENT_LEFT = 499
_PLAIN_ID = re.compile(r"[!-~]{1,128}")
#: Names in `x-core-ignored-fields`: what is beyond these is counted, not named, so that the header stays short.
_MOST_NAMED = 20


class NotReady(CoreError):
    """The engine is loading, or the server is draining: come back later."""


class SlowBody(RequestError):
    """A body that did not come in time."""

    status = 408
    kind = "timeout_error"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not come within {seconds:g} seconds (--body-timeout)", code="slow_body")


class EngineFailure(CoreError):
    """The engine gave up on one request."""


class ErrorDetail(msgspec.Struct):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """OpenAI's error response."""

    error: ErrorDetail


class MessageErrorDetail(msgspec.Struct):
    """Anthropic's error object. The message begins with the field's path, for which it has no key."""

    type: str
    message: str


class MessageError(msgspec.Struct, tag="error"):
    """Anthropic's error response, and the event that ends a stream in one."""

    error: MessageErrorDetail
    request_id: str


_MESSAGE_ERRORS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
                   408: "timeout_error", 429: "rate_limit_error", 503: "overloaded_error"}  # fmt: skip


def is_messages(request: web.Request) -> bool:
    """Whether the path is of Anthropic's API, whose errors and keys are its own."""
    path = path_of(request)
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def message_error(status: int, body: ErrorBody, request_id: str) -> MessageError:
    """An error in Anthropic's shape."""
    kind = _MESSAGE_ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return MessageError(MessageErrorDetail(kind, body.error.message), request_id)


def describe(error: Exception, request_id: str) -> tuple[int, ErrorBody]:
    """Status and body for an exception; one that is nobody's fault but ours is logged with its traceback."""
    if isinstance(error, RequestError):
        return error.status, ErrorBody(ErrorDetail(error.message, error.kind, error.param, error.code))
    if isinstance(error, EngineDead | NotReady):
        code = "engine_dead" if isinstance(error, EngineDead) else "not_ready"
        return 503, ErrorBody(ErrorDetail(str(error), "service_unavailable_error", None, code))
    if isinstance(error, EngineFailure):
        log.error("request failed in the engine", request_id=request_id, reason=str(error))
        return 500, ErrorBody(ErrorDetail(str(error), "server_error", None, "engine_error"))
    log.error("request failed", request_id=request_id, exc_info=error)
    message = f"internal error; the server's log has it under request id {request_id}"
    return 500, ErrorBody(ErrorDetail(message, "server_error", None, "internal_error"))


def error_response(error: Exception, request: web.Request) -> web.Response:
    """The HTTP answer for an exception."""
    status, body = describe(error, request[REQUEST_ID])
    headers = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif status == 503:
        headers["Retry-After"] = "1"
    return _json(request, status, body, headers)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals (404, 405, 413 …) in the same shape."""
    if isinstance(error, web.HTTPNotFound):
        message, code = f"no such route: {request.method} {request.path}", "not_found"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message, code = f"{request.path} takes {allowed}, not {request.method}", "method_not_allowed"
    elif isinstance(error, web.HTTPRequestEntityTooLarge):
        message, code = f"the body is longer than {request.client_max_size} bytes", "body_too_large"
    else:
        message, code = error.text or error.reason, "http_error"
    allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    kind = "not_found_error" if error.status == 404 else "invalid_request_error"
    return _json(request, error.status, ErrorBody(ErrorDetail(message, kind, None, code)), allow)


def _json(request: web.Request, status: int, body: ErrorBody, headers: dict[str, str]) -> web.Response:
    shaped = message_error(status, body, request[REQUEST_ID]) if is_messages(request) else body
    content = msgspec.json.encode(shaped)
    return web.Response(status=status, body=content, headers=headers, content_type="application/json")


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give each request its id, and turn whatever it raises into an answer."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
    try:
        response = await handler(request)
        if not isinstance(response, web.StreamResponse):  # aiohttp checks it too late for an answer in our shape
            raise TypeError(f"{request.path}: its handler returned {response!r} where a response is due")
        return response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _http_error(request, error)
    except ConnectionError:
        # The client has gone away. aiohttp would log what is raised here; what is returned it drops without a word.
        return web.Response(status=CLIENT_LEFT)
    except Exception as error:
        if request.writer.output_size > 0 and request.transport is not None:
            request.transport.abort()  # part of an answer is out: its client must not take it for the whole
        return error_response(error, request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The headers that every answer carries, streams included."""
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
        if is_messages(request):
            response.headers["request-id"] = request[REQUEST_ID]
    if ignored := request.get(IGNORED_FIELDS):
        names = [quote(name[:64], safe="") for name in ignored[:_MOST_NAMED]]
        more = [f"+{len(ignored) - _MOST_NAMED}"] if len(ignored) > _MOST_NAMED else []
        response.headers["x-core-ignored-fields"] = ", ".join(names + more)


def unauthorized(request: web.Request) -> web.Response:
    """The answer to a missing or wrong API key."""
    other = " or `x-api-key: KEY`" if is_messages(request) else ""
    message = f"the API key is missing or wrong; send it as `Authorization: Bearer KEY`{other}"
    detail = ErrorDetail(message, "authentication_error", None, "invalid_api_key")
    return _json(request, 401, ErrorBody(detail), {"WWW-Authenticate": "Bearer"})


def forbidden(request: web.Request) -> web.Response:
    """The answer to anything but an administrator's key where one is due."""
    message = f"{request.path[:200]} is for administrators: it wants a key that the server was given with --admin-key"
    return _json(request, 403, ErrorBody(ErrorDetail(message, "permission_error", None, "not_an_admin_key")), {})
