"""Where the routes are: at the root, and also under the path that a reverse proxy shows them at."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

#: `--root-path`, without a slash at its end; empty: none.
ROOT_PATH: web.AppKey[str] = web.AppKey("root_path", str)


def path_of(request: web.Request) -> str:
    """The path as the routes have it, whether the proxy in front has taken the root path off or not."""
    root = request.app[ROOT_PATH]
    return request.path[len(root) :] if root and request.path.startswith(f"{root}/") else request.path


def rooted(definitions: Iterable[web.RouteDef], root: str) -> list[web.RouteDef]:
    """The routes, and each again under the root path where there is one."""
    definitions = list(definitions)
    again = [web.RouteDef(each.method, root + each.path, each.handler, each.kwargs) for each in definitions]
    return definitions + again if root else definitions


def pattern(request: web.Request) -> str:
    """The pattern of the route, as `/v1/responses/{response_id}`; `none` for all paths that have no route, or anyone could
    make endless series of metrics."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical
