"""The engine process is killed, twice, while 16 clients stream from it: none of them notices but by the clock."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import aiohttp
import pytest
from real_server import RealServer

pytestmark = pytest.mark.slow

TEXTS = [
    "Once upon a time",
    "The sea is",
    "List three colours:",
    "My neighbour's dog",
    "def main():",
    "In 1850,",
    "Why",
    "1, 2,",
]
#: Greedy and sampled, plain and with everything that has a state of its own to lose.
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "seed": 8, "top_p": 0.9, "top_k": 50, "n": 2},
    {"temperature": 0, "logprobs": 2},
    {"temperature": 1.0, "seed": 9, "stop": ["qqq", "zzz"], "min_p": 0.05},
    {"temperature": 0, "min_tokens": 12, "stop": [" the", "."]},
    {"temperature": 0.7, "seed": 10, "presence_penalty": 0.5, "logprobs": 1},
]


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Eight completions and eight chats, of 20 to 65 tokens each."""
    made: list[tuple[str, dict[str, Any]]] = []
    for index in range(16):
        text, kind = TEXTS[index % 8], dict(KINDS[(index + index // 8) % 8])
        body = {**kind, "max_tokens": 20 + 3 * index, "ignore_eos": True, "stream": True}
        if index < 8:
            made.append(("/v1/completions", {**body, "prompt": text}))
        else:
            if "logprobs" in body:
                body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
            made.append(("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}))
    return made


class Stream:
    """One client: what it got of each choice."""

    def __init__(self, route: str, body: dict[str, Any]) -> None:
        self.route, self.body = route, {**body, "stream_options": {"include_usage": True}}
        self.texts: dict[int, str] = {}
        self.tokens: dict[int, list[str]] = {}
        self.logprobs: dict[int, list[float]] = {}
        self.reasons: dict[int, tuple[str, Any]] = {}
        self.usage: dict[str, Any] = {}
        self.chunks = 0

    async def run(self, session: aiohttp.ClientSession, url: str) -> None:
        async with session.post(url + self.route, json=self.body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    self._take(json.loads(line[6:]))
        assert set(self.reasons) == set(range(self.body.get("n", 1)))

    def _take(self, event: dict[str, Any]) -> None:
        assert "error" not in event, event
        self.usage = event["usage"] or self.usage
        for choice in event["choices"]:
            self.chunks += 1
            index = choice["index"]
            text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            self.texts[index] = self.texts.get(index, "") + text
            if choice["finish_reason"]:
                self.reasons[index] = choice["finish_reason"], choice["stop_reason"]
            if choice["logprobs"]:
                self._take_logprobs(index, choice["logprobs"])

    def _take_logprobs(self, index: int, logprobs: dict[str, Any]) -> None:
        entries = logprobs.get("content") or [
            {"token": token, "logprob": value}
            for token, value in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
        ]
        self.tokens.setdefault(index, []).extend(entry["token"] for entry in entries)
        self.logprobs.setdefault(index, []).extend(entry["logprob"] for entry in entries)

    def answer(self) -> tuple[object, ...]:
        """All of it but the logprobs' last digits, and how much of the prompt was found in a cache."""
        return self.texts, self.tokens, self.reasons, self.usage["completion_tokens"]


async def until_each_has(streams: list[Stream], chunks: int) -> None:
    while min(stream.chunks for stream in streams) < chunks:
        await asyncio.sleep(0.01)


async def ready_state(session: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any]]:
    async with session.get(f"{url}/readyz") as response:
        return response.status, await response.json()


async def kill_engine_and_wait(server: RealServer, session: aiohttp.ClientSession) -> None:
    """Kill it, see that operators are told, and wait for the next one."""
    engine = server.engine()
    assert engine is not None
    restarts = (await ready_state(session, server.url))[1]["restarts"]
    os.kill(engine.pid, signal.SIGKILL)
    while (state := await ready_state(session, server.url))[0] == 200:
        await asyncio.sleep(0.005)
    assert state[0] == 503 and state[1]["state"] == "restarting" and "SIGKILL" in state[1]["message"]
    assert await asyncio.to_thread(server.figure, "engine_up") == 0
    while (state := await ready_state(session, server.url))[0] != 200:
        assert state[1]["state"] == "restarting"
        await asyncio.sleep(0.02)
    assert state[1]["restarts"] == restarts + 1
    replaced = server.engine()
    assert replaced is not None and replaced.pid != engine.pid


async def test_streams_go_on_when_their_engine_is_killed(demo_server: RealServer) -> None:
    timeout = aiohttp.ClientTimeout(total=240)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        undisturbed = [Stream(*request) for request in requests()]
        await asyncio.gather(*(stream.run(session, demo_server.url) for stream in undisturbed))

        streams = [Stream(*request) for request in requests()]
        running = [asyncio.create_task(stream.run(session, demo_server.url)) for stream in streams]
        await until_each_has(streams, 3)
        assert not any(task.done() for task in running)
        await kill_engine_and_wait(demo_server, session)

        unfinished = [stream for stream, task in zip(streams, running, strict=True) if not task.done()]
        await until_each_has(unfinished, 6)
        assert sum(not task.done() for task in running) >= 8
        await kill_engine_and_wait(demo_server, session)
        await asyncio.gather(*running)
    while await asyncio.to_thread(demo_server.figure, "engine_up") != 1:
        await asyncio.sleep(0.02)

    for stream, expected in zip(streams, undisturbed, strict=True):
        assert stream.answer() == expected.answer(), stream.body
        for index, values in expected.logprobs.items():
            assert stream.logprobs[index] == pytest.approx(values, abs=1e-3)
