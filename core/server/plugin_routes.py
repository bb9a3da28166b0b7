"""The routes that plugins add to the core's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiohttp import web

from core.extensions import Extension
from core.server.errors import Handler
from core.server.extensions import RouteContext
from core.server.paths import ROOT_PATH, path_of, rooted
from core.server.state import ServerState

#: The handlers of plugins' routes, which are logged as /v1 is, whatever their paths.
HANDLERS: web.AppKey[frozenset[Handler]] = web.AppKey("plugin_handlers", frozenset)


#: The core's own routes outside of /v1 that read what clients send; their names are vLLM's.
_API_PATHS = frozenset({
    "/tokenize", "/detokenize", "/invocations", "/pooling", "/classify", "/score", "/rerank", "/v2/rerank",
})  # fmt: skip


def is_api(request: web.Request) -> bool:
    """Whether this is what the server is for, and no operator's question."""
    path = path_of(request)
    own = path.startswith("/v1/") or path in _API_PATHS
    return own or request.match_info.handler in request.app[HANDLERS]


def add_plugin_routes(app: web.Application, state: ServerState, extensions: Iterable[Extension]) -> None:
    """Add the routes of all plugins, after the core's. Raises PluginLoadError for one that cannot be added."""
    owners = dict.fromkeys(app.router.routes(), "the core itself")
    handlers: set[Handler] = set()
    for extension in extensions:
        for definition in _definitions(extension, state):
            _check_free(definition, owners, extension)
            try:
                routes = app.add_routes(rooted([definition], app[ROOT_PATH]))
            except Exception as error:  # a path or a handler that aiohttp does not take
                raise extension.error(f"cannot serve {_named(definition)}: {type(error).__name__}: {error}") from error
            owners.update(dict.fromkeys(routes, extension.distribution))
            handlers.add(definition.handler)
    app[HANDLERS] = frozenset(handlers)


def _definitions(extension: Extension, state: ServerState) -> Sequence[web.RouteDef]:
    target = extension.load()
    try:
        definitions = list(target(RouteContext(state, extension.plugin, extension.options)))
    except Exception as error:  # whatever a stranger's code raises
        raise extension.error(f"cannot be made: {type(error).__name__}: {error}") from error
    for definition in definitions:
        if not isinstance(definition, web.RouteDef):
            raise extension.error(f"made {definition!r} where an aiohttp.web.RouteDef is due")
    return definitions


def _check_free(definition: web.RouteDef, owners: dict[web.AbstractRoute, str], extension: Extension) -> None:
    """A route that others answer already would never be reached."""
    for route, owner in owners.items():
        if _answers(route, definition):
            raise extension.error(f"adds {_named(definition)}, which {owner} serves already")


def _answers(route: web.AbstractRoute, definition: web.RouteDef) -> bool:
    method = definition.method.upper()
    if method not in (route.method, "*") and route.method != "*":
        return False
    info = route.resource.get_info() if route.resource is not None else {}
    if "pattern" in info:
        return info["pattern"].fullmatch(definition.path) is not None
    return info.get("path") == definition.path


def _named(definition: web.RouteDef) -> str:
    return f"{definition.method} {definition.path}"
