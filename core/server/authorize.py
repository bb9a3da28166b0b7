"""Who may ask what: every route wants a key, but for those that tell nothing, and the administrators' want theirs."""

from __future__ import annotations

from aiohttp import web

from core.server.errors import Handler, forbidden, is_messages, unauthorized
from core.server.paths import path_of
from core.server.state import STATE

#: What orchestrators ask before they have a key.
OPEN = frozenset({"/livez", "/readyz", "/ping"})
#: What only administrators may do.
ADMIN = frozenset({"/reset_prefix_cache"})
#: On a request that came with a key: its number.
KEY_NUMBER: web.RequestKey[int] = web.RequestKey("key_number", int)


@web.middleware
async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Look for a key where one is needed: a bearer token (RFC 6750), or as Anthropic's clients send theirs."""
    keys, path = request.app[STATE].keys, path_of(request)
    if not _needs_key(request, path):
        return await handler(request)
    number = keys.find(_given(request))
    if path in ADMIN and (number is None or not keys.is_admin(number)):
        return forbidden(request)
    if number is None:
        return unauthorized(request)
    request[KEY_NUMBER] = number
    return await handler(request)


def _needs_key(request: web.Request, path: str) -> bool:
    state = request.app[STATE]
    if path in ADMIN:
        return True
    return state.keys.has_clients and path not in OPEN and (path != "/metrics" or state.options.metrics_auth)


def _given(request: web.Request) -> str:
    if is_messages(request) and "x-api-key" in request.headers:
        return request.headers["x-api-key"]
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
