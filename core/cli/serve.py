"""`core serve`: a model behind OpenAI's HTTP API, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from contextlib import ExitStack, closing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

import core
from core import envs, logs, plugins
from core.cli.listen import Address, listen
from core.cli.options import add_engine_options, add_options, engine_options, given_options
from core.config import resolve
from core.engine.messages import EngineStatus, Planned
from core.engine.supervisor import Launch, Supervisor
from core.progress import ProgressBar
from core.server.cors import CrossOrigin
from core.server.keys import KeyRing
from core.server.limits import key_limits, shared
from core.server.options import ServerOptions
from core.server.parsers import choose_parsers
from core.server.tls import ssl_context
from core.server.tracing import check_tracing

_log = logs.get_logger("serve")


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
        "model",
        nargs="?",
        metavar="MODEL",
        help="directory, .gguf file, hub name or s3://bucket/prefix; default: the demo",
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
    tls, keys = ssl_context(server) is not None, KeyRing.of(server)  # the frontends make them too, and much later
    CrossOrigin(server), key_limits(server, has_keys=keys.has_clients)
    check_tracing(server)
    with listen(server) as listener:
        address = Address.of(listener, tls=tls, root_path=server.root_path)
        if address.is_public and not keys.has_clients:
            _say(f"warning: whoever reaches {address.url} may use it; --api-key or CORE_API_KEY gives it a key")
        extensions = plugins.extensions(options)
        choose_parsers(server, extensions)  # the frontends do so too, and much later
        config = resolve(args.model, options, extensions)
        chosen = plugins.choose(options)
        _log.info("starting", version=core.__version__, usage_source=envs.read().usage_source)
        _say(f"{config.model.name} ({config.model.architecture}) on platform {chosen.name}: {chosen.reason}")
        launch = Launch(
            config=config,
            chosen=chosen,
            frontend_options=shared(server, processes.api_server_count),
            listen_fd=listener.fileno(),
            api_server_count=processes.api_server_count,
            shutdown_timeout_s=processes.shutdown_timeout,
        )
        with closing(Display(address, config.model.name, started)) as display:
            asyncio.run(Supervisor(launch, display).run())
    return 0


class Display:
    """Tells whoever started the server how it goes: in lines, with a bar beneath where that is a terminal."""

    def __init__(self, address: Address, model: str, started: float) -> None:
        self._open = ExitStack()
        self._bar = self._open.enter_context(ProgressBar("starting"))
        self._address = address
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
        url, curl = self._address.url, self._address.curl
        _say(f"ready in {seconds:.1f} s: {url}/v1, serving {self._model}; Ctrl-C ends it. Try:")
        _say(f"  {curl}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")

    def close(self) -> None:
        """Take the bar away."""
        self._open.close()


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
