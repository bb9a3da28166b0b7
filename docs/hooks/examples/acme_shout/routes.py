"""`POST /v1/shout {"prompt": …}`: the answer in capitals."""

from __future__ import annotations

from aiohttp import web

from core.server.extensions import RouteContext


def routes(context: RouteContext) -> list[web.RouteDef]:
    """The route, with the server behind it."""

    async def shout(request: web.Request) -> web.Response:
        body = await request.json()
        generation = await context.generate(request, body["prompt"], {"max_tokens": 20})
        text = "".join([delta.text async for delta in generation.deltas()])
        return web.json_response({"text": text.upper()})

    return [web.post("/v1/shout", shout)]
