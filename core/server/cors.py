"""Cross-origin requests, from pages of other servers that the operator trusts (WHATWG Fetch, section 3.3)."""

from __future__ import annotations

import msgspec
from aiohttp import hdrs, web

from core.errors import ConfigError
from core.server.errors import Handler
from core.server.options import ServerOptions

_EXPOSED = "X-Request-Id, x-core-ignored-fields, Retry-After"
#: Seconds for which a browser may keep the answer to a preflight.
_MAX_AGE = "600"


class CrossOrigin:
    """Which origins may read the answers, and with which methods and headers they may ask. Raises ConfigError."""

    def __init__(self, options: ServerOptions) -> None:
        self._origins = frozenset(_listed("--allowed-origins", options.allowed_origins))
        self._methods = _listed("--allowed-methods", options.allowed_methods) or ["*"]
        self._headers = _listed("--allowed-headers", options.allowed_headers) or ["*"]
        self._credentials = options.allow_credentials
        if not self._origins and (options.allowed_methods or options.allowed_headers or options.allow_credentials):
            raise ConfigError("--allowed-origins", "no origin is allowed, so the other CORS options allow nothing")
        if options.allow_credentials and "*" in self._origins:
            message = "'*' with --allow-credentials would let every page act for its visitors; name the origins"
            raise ConfigError("--allowed-origins", message)

    def __bool__(self) -> bool:
        return bool(self._origins)

    @web.middleware
    async def preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer what a browser asks before it asks; it bears no key."""
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != hdrs.METH_OPTIONS or wanted is None or self._allowed(request) is None:
            return await handler(request)
        headers = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(self._methods), hdrs.ACCESS_CONTROL_MAX_AGE: _MAX_AGE}
        if self._methods == ["*"]:  # with credentials the star is a method's name
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = wanted
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        # The star does not stand for Authorization, so what was asked for is repeated.
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked if self._headers == ["*"] else ", ".join(self._headers)
        return web.Response(status=204, headers=headers)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """A signal: what every answer to an allowed origin carries, streams and errors included."""
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if (origin := self._allowed(request)) is None:
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        if self._credentials:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"

    def _allowed(self, request: web.Request) -> str | None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return None
        return "*" if "*" in self._origins else origin if origin in self._origins else None


def _listed(option: str, values: tuple[str, ...]) -> list[str]:
    """The values; one that is a JSON list stands for its items, as vLLM's flags have it."""
    found: list[str] = []
    for value in values:
        if value.startswith("["):
            try:
                found += msgspec.json.decode(value, type=list[str])
            except msgspec.DecodeError as error:
                raise ConfigError(option, f"{value!r} is not a JSON list of strings") from error
        else:
            found.append(value)
    return found
