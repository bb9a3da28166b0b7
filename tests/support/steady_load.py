"""Clients that ask all the time, half of them streaming, and remember how each request went."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
from in_thread import in_thread


@dataclass
class Outcome:
    """One request: when it began and ended (monotonic), who answered, and what went wrong, if anything."""

    began: float
    ended: float = 0.0
    server: str = ""
    tokens: int = 0
    error: str = ""


class SteadyLoad:
    """`clients` that send a completion each, and the next when it is answered."""

    def __init__(self, url: str, *, clients: int, max_tokens: int) -> None:
        self.outcomes: list[Outcome] = []
        self._url = url
        self._clients = clients
        self._max_tokens = max_tokens
        self._stop = threading.Event()

    def run(self) -> None:
        asyncio.run(self._run())

    def stop(self) -> None:
        """Each client finishes the request that it is at."""
        self._stop.set()

    def failed(self) -> list[Outcome]:
        """The requests that were not answered in full."""
        return [each for each in self.outcomes if each.ended and each.error]

    def served_by(self) -> set[str]:
        """Who has answered."""
        return {each.server for each in self.outcomes if each.ended and not each.error}

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            await asyncio.gather(*(self._client(session, stream=number % 2 == 0) for number in range(self._clients)))

    async def _client(self, session: aiohttp.ClientSession, *, stream: bool) -> None:
        while not self._stop.is_set():
            outcome = Outcome(time.monotonic())
            self.outcomes.append(outcome)
            try:
                await self._ask(session, outcome, stream)
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome.error = f"{type(error).__name__}: {error}"
            outcome.ended = time.monotonic()

    async def _ask(self, session: aiohttp.ClientSession, outcome: Outcome, stream: bool) -> None:
        body = {"model": "sim", "prompt": "Hello", "max_tokens": self._max_tokens, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        async with session.post(f"{self._url}/v1/completions", json=body) as answer:
            outcome.server = answer.headers.get("X-Served-By", "").rpartition(" ")[2]  # the last of those tried
            text = await answer.text()
        if answer.status != 200:
            outcome.error = f"HTTP {answer.status}: {text[:200]}"
            return
        if stream and not text.endswith("data: [DONE]\n\n"):
            outcome.error = f"the stream ended without [DONE]: {text[-200:]}"
            return
        last = text.rstrip().split("\n\n")[-2].removeprefix("data: ") if stream else text
        outcome.tokens = json.loads(last)["usage"]["completion_tokens"]
        if outcome.tokens != self._max_tokens:
            outcome.error = f"{outcome.tokens} tokens"


@contextmanager
def steady_load(url: str, *, clients: int = 8, max_tokens: int = 20) -> Iterator[SteadyLoad]:
    """Load until the end of the block; then every request has been answered."""
    load = SteadyLoad(url, clients=clients, max_tokens=max_tokens)
    with in_thread(load.run, load.stop):
        yield load
