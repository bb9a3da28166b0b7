"""`core serve`: a model behind OpenAI's HTTP API, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import socket
import sys
import time
from contextlib import ExitStack, closing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from core import envs, logs, plugins
from core.cli.options import add_engine_options, add_options, engine_options, given_options
from core.config import resolve
from core.engine.messages import EngineStatus, Planned
from core.engine.supervisor import Launch, Supervisor
from core.errors import ConfigError
from core.progress import ProgressBar
from core.server.options import ServerOptions
from core.server.parsers import choose_parsers

_BACKLOG = 1024


class ProcessOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the processes around the engine."""

    api_server_count: Annotated[int, Meta(ge=1, description="frontend processes")] = 1
    shutdown_timeout: Annotated[
        float, Meta(ge=0, description="seconds that running requests get to finish after SIGTERM or Ctrl-C")
    ] = 30.0


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("serve", help="serve a model over HTTP, with OpenAI's API")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, .gguf file or hub name; default: the demo"
    )
    add_options(parser, ServerOptions, "server options")
    add_options(parser, ProcessOptions, "process options")
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. Raises ConfigError, ModelError, PlatformError, EngineDead."""
    started = time.monotonic()
    logs.setup("supervisor")
    options, server, processes = (
        engine_options(args),
        given_options(args, ServerOptions),
        given_options(args, ProcessOptions),
    )
    for message in envs.unknown():
        _say(f"warning: {message}")
    with listen(server.host, server.port) as listener:
        extensions = plugins.extensions(options)
        choose_parsers(server, extensions)  # the frontends do so too, and much later
        config = resolve(args.model, options, extensions)
        chosen = plugins.choose(options)
        _say(f"{config.model.name} ({config.model.architecture}) on platform {chosen.name}: {chosen.reason}")
        launch = Launch(
            config=config,
            chosen=chosen,
            frontend_options=server,
            listen_fd=listener.fileno(),
            api_server_count=processes.api_server_count,
            shutdown_timeout_s=processes.shutdown_timeout,
        )
        with closing(Display(base_url(listener), config.model.name, started)) as display:
            asyncio.run(Supervisor(launch, display).run())
    return 0


class Display:
    """Tells whoever started the server how it goes: in lines, with a bar beneath where that is a terminal."""

    def __init__(self, url: str, model: str, started: float) -> None:
        self._open = ExitStack()
        self._bar = self._open.enter_context(ProgressBar("starting"))
        self._url = url
        self._model = model
        self._started = started
        self._stage = ""

    def status(self, status: EngineStatus) -> None:
        """Show what is being done."""
        if not status.stage:
            return
        self._bar.stage(status.stage, status.progress)
        if status.stage != self._stage:
            _say(status.stage)
        self._stage = status.stage

    def planned(self, planned: Planned) -> None:
        """Show what the platform decided, and why, and where the memory will go."""
        for override in planned.overrides:
            _say(f"{override.option} = {override.value}: {override.reason}")
        sizes = planned.memory_plan
        tokens = (sizes["num_blocks"] - 1) * sizes["block_size"]
        parts = {"weights": "weights", "kv_cache": f"KV cache of {tokens:,} tokens", "activations": "activations"}
        listed = ", ".join(f"{label} {_mebibytes(sizes[name])}" for name, label in parts.items())
        _say(f"memory plan: {listed}; {_mebibytes(sizes['total'])} in all, {_mebibytes(sizes['free'])} free")

    def serving(self) -> None:
        """Show where to send requests, with one to try."""
        self.close()
        seconds = time.monotonic() - self._started
        body = json.dumps(
            {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        )
        _say(f"ready in {seconds:.1f} s: {self._url}/v1, serving {self._model}; Ctrl-C ends it. Try:")
        _say(f"  curl {self._url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")

    def close(self) -> None:
        """Take the bar away."""
        self._open.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket, before anything slow: a port that is taken is known at once. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError("--host", f"{host!r} is not an address of this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_error(host, port, error) from error
    return listener


def _bind_error(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError("--port", f"{host}:{port} is in use; end what listens there, or choose another port")
    if error.errno == errno.EACCES:
        return ConfigError("--port", f"ports below 1024, like {port}, are not for everyone; choose a higher one")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError("--host", f"{host!r} is not an address of this machine; 0.0.0.0 is all of them")
    return ConfigError("--host", f"cannot listen on {host}:{port}: {error.strerror}")


def base_url(listener: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
