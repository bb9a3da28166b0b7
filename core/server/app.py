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
from core.engine.client import EngineClient, RemoteEngineClient
from core.logs import get_logger
from core.metrics import make_metrics
from core.server.access import access_middleware
from core.server.errors import Handler, add_headers, errors_middleware, is_messages, unauthorized
from core.server.options import ServerOptions
from core.server.parsers import choose_parsers
from core.server.plugin_routes import add_plugin_routes, is_api
from core.server.responses_store import RESPONSES, ResponseStore
from core.server.routes import ROUTES
from core.server.state import STATE, ServerState
from core.tokenization import Tokenizer, load_tokenizer

log = get_logger("server")

_BACKLOG = 1024


def create_app(client: EngineClient, tokenizer: Tokenizer, options: ServerOptions) -> web.Application:
    """OpenAI's API in front of an engine. Serve it with `handler_cancellation`: a client that leaves ends its request.

    Raises PluginLoadError or ConfigError for what plugins add to the server and cannot be used.
    """
    extensions = client.config.extensions
    metrics = make_metrics(client.config.model.name, extensions.metrics_sinks.values())
    parsers = choose_parsers(options, extensions).load()
    state = ServerState(client, tokenizer, options, metrics, parsers)
    middlewares = [access_middleware, errors_middleware, _authorize]
    app = web.Application(middlewares=middlewares, client_max_size=options.max_body_bytes)
    app[STATE] = state
    app[RESPONSES] = ResponseStore(options.max_stored_responses)
    app.on_response_prepare.append(add_headers)
    app.on_cleanup.append(_close_metrics)
    app.add_routes(ROUTES)
    add_plugin_routes(app, state, extensions.server_routes.values())
    return app


async def _close_metrics(app: web.Application) -> None:
    app[STATE].metrics.close()


@web.middleware
async def _authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Where there are keys, /v1 and plugins' routes want one of them as a bearer token (RFC 6750), or as Anthropic's do."""
    keys = request.app[STATE].options.api_key
    if keys and is_api(request):
        given = request.headers.get("Authorization", "")
        if is_messages(request) and "x-api-key" in request.headers:
            given = f"Bearer {request.headers['x-api-key']}"
        # Every key is compared, whichever matches: the time taken tells nothing.
        if not any([hmac.compare_digest(given.encode(), b"Bearer " + key.encode()) for key in keys]):
            return unauthorized(request)
    return await handler(request)


def run_frontend(config: Config, options: ServerOptions, listen_fd: int, control_endpoint: str) -> None:
    """Serve HTTP on an inherited listening socket until SIGTERM, then finish the running requests and refuse new ones.

    Another SIGTERM changes nothing: a service manager sends it to every process, and the supervisor, which ends what
    takes too long, sends its own. Raises TokenizerError; the engine need not be ready yet.
    """
    if not options.api_key and (key := envs.read().api_key):
        options = msgspec.structs.replace(options, api_key=(key,))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, options, listen_fd, control_endpoint))


async def _serve(config: Config, options: ServerOptions, listen_fd: int, control_endpoint: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = RemoteEngineClient(control_endpoint, config)
    tokenizer = load_tokenizer(config.model.tokenizer_path, chat_template=config.model.chat_template)
    app = create_app(client, tokenizer, options)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.SockSite(runner, socket.socket(fileno=listen_fd), backlog=_BACKLOG).start()
    await stop.wait()
    app[STATE].draining = True
    log.info("draining")
    # The socket stays open meanwhile: other processes hold it too, so who came now would wait for ever unanswered.
    await app[STATE].wait_idle()
    await runner.cleanup()
    await client.close()
