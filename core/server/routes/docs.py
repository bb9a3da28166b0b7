"""GET /openapi.json and /docs: what the server offers."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from core.server.docs_page import page
from core.server.openapi import document
from core.server.paths import ROOT_PATH
from core.server.reply import reply
from core.server.state import STATE


async def openapi(request: web.Request) -> web.Response:
    """What the server offers, for programs: OpenAPI 3.1."""
    return reply(_document(request))


async def docs(request: web.Request) -> web.Response:
    """What the server offers, for people."""
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return web.Response(text=page(_document(request)), content_type="text/html", headers=policy)


def _document(request: web.Request) -> dict[str, Any]:
    app = request.app
    return document(app.router.routes(), root_path=app[ROOT_PATH], needs_key=app[STATE].keys.has_clients)


ROUTES = [web.get("/openapi.json", openapi), web.get("/docs", docs)]
