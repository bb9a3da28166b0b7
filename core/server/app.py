"""The HTTP application, and the process that serves it. Imports neither torch nor transformers."""

from __future__ import annotations

import asyncio
import hmac
import signal
import socket

import msgspec
import uvloop
from aiohttp import web

from core import envs
from core.config import Config
from core.engine.client import EngineClient, ZmqEngineClient
from core.logs import get_logger
from core.metrics import PrometheusMetrics
from core.server.errors import Handler, add_headers, errors_middleware, unauthorized
from core.server.options import ServerOptions
from core.server.routes import ROUTES
from core.server.state import STATE, ServerState
from core.tokenization import Tokenizer, load_tokenizer

log = get_logger("server")

#: Seconds that a frontend lets its requests finish: in effect no limit, which is the supervisor's to set.
_DRAIN_LIMIT = 86_400.0
_BACKLOG = 1024


def create_app(client: EngineClient, tokenizer: Tokenizer, options: ServerOptions) -> web.Application:
    """OpenAI's API in front of an engine. Serve it with `handler_cancellation`: a client that leaves ends its request."""
    app = web.Application(middlewares=[errors_middleware, _authorize], client_max_size=options.max_body_bytes)
    app[STATE] = ServerState(client, tokenizer, options, PrometheusMetrics(client.config.model.name))
    app.on_response_prepare.append(add_headers)
    app.add_routes(ROUTES)
    return app


@web.middleware
async def _authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Where there are keys, /v1 wants one of them as a bearer token (RFC 6750)."""
    keys = request.app[STATE].options.api_key
    if keys and request.path.startswith("/v1/"):
        given = request.headers.get("Authorization", "").encode()
        # Every key is compared, whichever matches: the time taken tells nothing.
        if not any([hmac.compare_digest(given, b"Bearer " + key.encode()) for key in keys]):
            return unauthorized()
    return await handler(request)


def run_frontend(config: Config, options: ServerOptions, listen_fd: int, control_endpoint: str) -> None:
    """Serve HTTP on an inherited listening socket until SIGTERM, then finish the running requests.

    A second SIGTERM ends at once. Raises TokenizerError; the engine need not be ready yet.
    """
    if not options.api_key and (key := envs.read().api_key):
        options = msgspec.structs.replace(options, api_key=(key,))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, options, listen_fd, control_endpoint))


async def _serve(config: Config, options: ServerOptions, listen_fd: int, control_endpoint: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = ZmqEngineClient(control_endpoint, config)
    tokenizer = load_tokenizer(config.model.tokenizer_path, chat_template=config.model.chat_template)
    app = create_app(client, tokenizer, options)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_DRAIN_LIMIT)
    await runner.setup()
    await web.SockSite(runner, socket.socket(fileno=listen_fd), backlog=_BACKLOG).start()
    await stop.wait()
    stop.clear()
    app[STATE].draining = True
    log.info("draining")
    drained = asyncio.create_task(runner.cleanup())
    told_again = asyncio.create_task(stop.wait())
    await asyncio.wait({drained, told_again}, return_when=asyncio.FIRST_COMPLETED)
    told_again.cancel()
    if drained.done():
        await drained
    else:
        drained.cancel()
        log.warning("ended with requests running")
    await client.close()
