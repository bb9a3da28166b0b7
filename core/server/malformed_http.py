"""What is refused before any handler runs, because it is not HTTP: in the shape of every other error.

aiohttp answers it with a line of text, and has no setting for that. Its protocol's public methods are where these
answers are made; that they are used is the one thing here that is not in its documentation.
"""

from __future__ import annotations

import uuid

import msgspec
from aiohttp import web
from aiohttp.web_request import BaseRequest

from core.server.errors import ErrorBody, ErrorDetail, is_messages, log, message_error

_LONGEST = 200  # characters of the parser's reason, which may quote the client


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to what could not be parsed, and to what failed outside of our own handlers; then the end."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of another answer is out")
        if status < 500:
            reason = " ".join((message or "it cannot be parsed").split())[:_LONGEST]
            log.debug("malformed request", reason=reason)
            return _refusal(status, f"the request is not valid HTTP: {reason}", "malformed_http")
        log.error("request failed outside of its handler", exc_info=exc)
        return _refusal(status, "internal error; the server's log has it", "internal_error")

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Refusals that are raised before the middlewares: an `Expect` that nobody can meet."""
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            anthropic = isinstance(request, web.Request) and is_messages(request)
            resp = _refusal(resp.status, resp.text or resp.reason, "http_error", anthropic=anthropic)
        return await super().finish_response(request, resp, start_time)


class _Server(web.Server):
    """Makes the connections' protocols."""

    def __call__(self) -> _Protocol:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an application by protocols of ours."""

    async def _make_server(self) -> web.Server:
        server: web.Server = await super()._make_server()
        server.__class__ = _Server
        return server


def _refusal(status: int, message: str, code: str, *, anthropic: bool = False) -> web.Response:
    request_id = uuid.uuid4().hex
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = ErrorBody(ErrorDetail(message, kind, None, code))
    content = msgspec.json.encode(message_error(status, body, request_id) if anthropic else body)
    headers = {"X-Request-Id": request_id}
    response = web.Response(status=status, body=content, headers=headers, content_type="application/json")
    response.force_close()
    return response
