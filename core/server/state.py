"""What every handler of one frontend shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

import core
from core.engine.client import EngineClient
from core.engine.input import InputProcessor
from core.errors import NotFound
from core.metrics import Metrics
from core.server.errors import NotReady
from core.server.keys import KeyRing
from core.server.options import ServerOptions
from core.server.parsers import Parsers
from core.server.prompt_queue import PromptQueue
from core.tokenization import Tokenizer


@dataclass
class ServerState:
    """One frontend: the engine's client, the tokenizer, and what the user asked of the server."""

    client: EngineClient
    tokenizer: Tokenizer
    options: ServerOptions
    metrics: Metrics
    parsers: Parsers
    keys: KeyRing
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.prompt_queue = PromptQueue(self.options.max_queued_tokens)
        self._running = 0
        self.load = 0  # of them, requests to the API: what operators ask is none
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def model(self) -> str:
        """The name clients use."""
        return self.client.config.model.name

    @property
    def processor(self) -> InputProcessor:
        """Checks and tokenizes prompts, by the configuration as the platform's plan left it."""
        return InputProcessor(self.client.config, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: equal ones give equal answers to equal seeded requests."""
        return f"core-{core.__version__}-{self.client.config.model.fingerprint[:8]}"

    @contextmanager
    def running(self, *, api: bool) -> Iterator[None]:
        """A request runs inside."""
        self._running += 1
        self.load += api
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            self.load -= api
            if not self._running:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no request is running."""
        await self._idle.wait()

    def check_model(self, name: str | None) -> None:
        """Raises NotFound when a client asks for a model that is not served here; naming none is fine."""
        if name is not None and name != self.model:
            message = f"model: {name[:200]!r} does not exist; this server serves {self.model!r}"
            raise NotFound(message, param="model", code="model_not_found")

    def check_ready(self) -> None:
        """Raises NotReady while requests cannot be taken. A restarting engine takes them: they wait for it."""
        status = self.client.status
        if self.draining or status.state == "draining":
            raise NotReady("the server is shutting down; send the request elsewhere")
        if status.state in ("starting", "loading"):
            raise NotReady(
                f"the model is still loading ({status.stage or status.state}, {status.progress:.0%}); try later"
            )
        if status.state == "failed":
            raise NotReady(f"the engine failed and was not brought back: {status.message or 'see the log'}")


STATE: web.AppKey[ServerState] = web.AppKey("state", ServerState)
