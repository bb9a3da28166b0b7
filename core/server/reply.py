"""Answers that are one JSON document."""

from __future__ import annotations

import msgspec
from aiohttp import web


def reply(body: object, status: int = 200) -> web.Response:
    """A struct, or whatever else msgspec encodes, as an answer."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
