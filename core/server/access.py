"""Around every request: it counts as running, and the log says in one line how it went, never what was asked."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import hdrs, web

from core.server.errors import CLIENT_LEFT, REQUEST_ID, Handler, log
from core.server.generation import GENERATION
from core.server.paths import pattern
from core.server.plugin_routes import is_api
from core.server.state import STATE


@web.middleware
async def access_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost, so that what it sees is what the client gets."""
    state = request.app[STATE]
    started = time.monotonic()
    status = CLIENT_LEFT  # which cancels the handler
    api = is_api(request)
    with state.running(api=api):
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            seconds = time.monotonic() - started
            state.metrics.http(_method(request), pattern(request), status, seconds)
            if state.options.log_requests and api:
                _log(request, status, seconds)


def _method(request: web.Request) -> str:
    return request.method if request.method in hdrs.METH_ALL else "other"  # as few series as there are methods


def _log(request: web.Request, status: int, seconds: float) -> None:
    fields: dict[str, Any] = {}
    if (generation := request.get(GENERATION)) is not None:
        usage = generation.usage()
        fields = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        if (first := generation.first_token_seconds()) is not None:
            fields["ttft_s"] = round(first, 6)
    route = f"{request.method} {request.path[:200]}"
    log.info("request", request_id=request[REQUEST_ID], route=route, status=status, **fields, seconds=round(seconds, 6))
