"""The HTTP application, and the process that serves it. Imports neither torch nor transformers."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from pathlib import Path

import uvloop
from aiohttp import web

from core.config import Config
from core.engine.client import EngineClient, RemoteEngineClient
from core.logs import get_logger
from core.metrics import make_metrics
from core.server.access import access_middleware
from core.server.authorize import authorize
from core.server.cors import CrossOrigin
from core.server.errors import add_headers, errors_middleware
from core.server.frontends import FRONTENDS, Frontends
from core.server.keys import KeyRing
from core.server.limits import key_limits, limiter
from core.server.malformed_http import Runner
from core.server.options import ServerOptions
from core.server.parsers import choose_parsers
from core.server.paths import ROOT_PATH, rooted
from core.server.plugin_routes import add_plugin_routes
from core.server.responses_store import RESPONSES, ResponseStore
from core.server.routes import ROUTES
from core.server.state import STATE, ServerState
from core.server.tls import ssl_context
from core.server.tracing import make_tracing
from core.tokenization import Tokenizer, load_tokenizer

log = get_logger("server")

_BACKLOG = 1024


def create_app(
    client: EngineClient, tokenizer: Tokenizer, options: ServerOptions, frontends: Frontends | None = None
) -> web.Application:
    """OpenAI's API in front of an engine, alone or with other `frontends`. Serve it with `app_runner`.

    Raises PluginLoadError or ConfigError for what plugins add to the server and cannot be used.
    """
    extensions = client.config.extensions
    metrics = make_metrics(client.config.model.name, extensions.metrics_sinks.values(), prefix=options.metrics_prefix)
    parsers = choose_parsers(options, extensions).load()
    keys = KeyRing.of(options)
    state = ServerState(client, tokenizer, options, metrics, parsers, keys)
    cross_origin = CrossOrigin(options)
    limit = limiter(key_limits(options, has_keys=keys.has_clients))
    tracing = make_tracing(options, client.config.model.name)
    outermost = [] if tracing is None else [tracing.trace]
    middlewares = [*outermost, access_middleware, errors_middleware, cross_origin.preflight, authorize, limit]
    app = web.Application(middlewares=middlewares, client_max_size=options.max_body_bytes)
    app[STATE], app[ROOT_PATH] = state, options.root_path
    app[FRONTENDS] = frontends or Frontends()
    app[RESPONSES] = ResponseStore(options.max_stored_responses)
    app.on_response_prepare.append(add_headers)
    if cross_origin:
        app.on_response_prepare.append(cross_origin.add_headers)
    app.on_cleanup.append(_close_metrics)
    if tracing is not None:
        app.on_cleanup.append(tracing.close)
    app.add_routes(rooted(ROUTES, options.root_path))
    add_plugin_routes(app, state, extensions.server_routes.values())
    return app


def app_runner(app: web.Application, *, shutdown_timeout: float = 60.0) -> Runner:
    """What serves the application: a client that leaves ends its request, and one that says nothing its connection."""
    return Runner(
        app,
        access_log=None,
        handler_cancellation=True,
        # It also ends a connection that brings no whole request head, its first one included.
        keepalive_timeout=app[STATE].options.keepalive_timeout,
        shutdown_timeout=shutdown_timeout,
    )


async def _close_metrics(app: web.Application) -> None:
    app[STATE].metrics.close()


def run_frontend(config: Config, options: ServerOptions, listen_fd: int, control_endpoint: str) -> None:
    """Serve HTTP on an inherited listening socket until SIGTERM, then finish the running requests and refuse new ones.

    Another SIGTERM changes nothing: a service manager sends it to every process, and the supervisor, which ends what
    takes too long, sends its own. Raises TokenizerError, ConfigError; the engine need not be ready yet.
    """
    _allow_many_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, options, listen_fd, control_endpoint))


def _allow_many_connections() -> None:
    """Open as many files as the system lets this process: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: Config, options: ServerOptions, listen_fd: int, control_endpoint: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = RemoteEngineClient(control_endpoint, config)
    tokenizer = load_tokenizer(config.model.tokenizer_path, chat_template=config.model.chat_template)
    # Beside the supervisor's own socket there is room for one of each frontend.
    frontends = Frontends(Path(control_endpoint.removeprefix("ipc://")).parent)
    app = create_app(client, tokenizer, options, frontends)
    runner = app_runner(app)
    await runner.setup()
    await frontends.listen(runner)
    site = web.SockSite(runner, socket.socket(fileno=listen_fd), ssl_context=ssl_context(options), backlog=_BACKLOG)
    await site.start()
    await stop.wait()
    app[STATE].draining = True
    log.info("draining")
    # The socket stays open meanwhile: other processes hold it too, so who came now would wait for ever unanswered.
    await app[STATE].wait_idle()
    await runner.cleanup()
    await client.close()
