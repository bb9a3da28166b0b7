"""What operators and orchestrators ask: alive, ready, how busy, which version."""

from __future__ import annotations

import asyncio

from aiohttp import web

import core
from core import envs
from core.errors import EngineDead
from core.server.reply import reply
from core.server.state import STATE
from core.types import EngineStats

#: Seconds that a scrape waits for the engine, which answers between steps.
_STATS_TIMEOUT = 1.0


async def live(request: web.Request) -> web.Response:
    """200 while this process can do its work, or wait for an engine that will come back; 503 when it never will."""
    status = request.app[STATE].client.status
    return reply({"state": status.state}, 503 if status.state == "failed" else 200)


async def ready(request: web.Request) -> web.Response:
    """200 when requests are taken and run; else 503 with how far the engine is."""
    state = request.app[STATE]
    status = state.client.status
    name = "draining" if state.draining else status.state
    body = {
        "state": name,
        "stage": status.stage,
        "progress": status.progress,
        "restarts": status.restarts,
        "message": status.message,
    }
    return reply(body, 200 if name == "ready" else 503)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    state = request.app[STATE]
    stats: EngineStats | None = None
    if state.client.status.state in ("ready", "draining"):
        try:
            stats = await asyncio.wait_for(state.client.stats(), _STATS_TIMEOUT)
        except (TimeoutError, EngineDead):
            stats = None  # shown as core:engine_up 0
    # It takes 10 ms and more, in which no stream must wait.
    body, content_type = await asyncio.to_thread(state.metrics.render, stats, state.client.status)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def version(request: web.Request) -> web.Response:
    """Which release this is, and how it was put here: the image's name where it runs in one of ours."""
    del request
    return reply({"version": core.__version__, "usage_source": envs.read().usage_source})


async def load(request: web.Request) -> web.Response:
    """How many API requests this frontend has in hand, for balancers that send the next one where they are fewest."""
    return reply({"server_load": request.app[STATE].load})


async def reset_prefix_cache(request: web.Request) -> web.Response:
    """Let no later request find the KV of an earlier one. 409 while requests run: they own theirs."""
    state = request.app[STATE]
    state.check_ready()
    done = await state.client.reset_prefix_cache()
    return reply({"reset": done}, 200 if done else 409)


async def index(request: web.Request) -> web.Response:
    """What is here, for people who open the address in a browser."""
    state = request.app[STATE]
    paths = {route.resource.canonical for route in request.app.router.routes() if route.resource is not None}
    return reply({"core": core.__version__, "model": state.model, "endpoints": sorted(paths - {"/"})})


ROUTES = [
    web.get("/", index),
    web.get("/health", ready),
    web.get("/ping", ready),  # SageMaker's
    web.post("/ping", ready),
    web.get("/livez", live),
    web.get("/readyz", ready),
    web.get("/metrics", metrics),
    web.get("/load", load),
    web.get("/version", version),
    web.post("/reset_prefix_cache", reset_prefix_cache),
]
