"""Who asks for too much, or too slowly, is told so or dropped; the others are served on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from plain_http import assert_refused, post, send

from core.errors import ConfigError, QueueFull
from core.server.limits import KeyLimited, KeyLimits, key_limits
from core.server.options import ServerOptions
from core.server.prompt_queue import PromptQueue

Serve = Callable[..., Any]
COMPLETIONS = "/v1/completions"
SAY = {"prompt": "say", "max_tokens": 2}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# --- of one key ----------------------------------------------------------------------------------------------


def test_concurrency_is_each_keys_own() -> None:
    limits = KeyLimits(2, 0)
    with limits.running(0), limits.running(0):
        with pytest.raises(KeyLimited, match="--max-concurrency-per-key"), limits.running(0):
            pass
        with limits.running(1):
            pass
    with limits.running(0), limits.running(0):
        pass


def test_the_rate_is_a_minutes_worth_at_once_and_then_even() -> None:
    now = 1000.0
    limits = KeyLimits(0, 30, lambda: now)

    def taken() -> int:
        for count in itertools.count():
            try:
                with limits.running(0):
                    pass
            except KeyLimited as error:
                assert 0 < error.retry_after_s <= 2
                return count

    assert taken() == 30
    now += 7
    assert taken() == 3  # one each 2 s
    now += 3600
    assert taken() == 30


def test_a_refusal_for_concurrency_takes_nothing_of_the_rate() -> None:
    limits = KeyLimits(1, 2, lambda: 0.0)
    with limits.running(0):
        for _ in range(5):
            with pytest.raises(KeyLimited, match="concurrency"), limits.running(0):
                pass
    with limits.running(0):
        pass


def test_limits_of_keys_want_keys() -> None:
    for flag in ("max_concurrency_per_key", "rate_limit_per_key"):
        with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')}"):
            key_limits(ServerOptions(**{flag: 1}), has_keys=False)


async def test_a_key_at_its_limit_is_told_when_to_come_back(serve: Serve) -> None:
    server = serve(ServerOptions(api_key=("one", "two"), admin_key=("root",), max_concurrency_per_key=1))
    server.engine.stall_after = 1
    async with aiohttp.ClientSession(server.url, headers=bearer("one")) as session:
        async with session.post(COMPLETIONS, json={**SAY, "max_tokens": 9, "stream": True}) as response:
            assert response.status == 200
            server.engine.stall_after = None
            answer = await asyncio.to_thread(post, server.url, COMPLETIONS, SAY, bearer("one"))
            assert_refused(answer, 429, None, "1 requests of this key")
            assert answer[1]["Retry-After"] == "1" and answer[2]["error"]["code"] == "rate_limit_exceeded"
            for key in ("two", "root", "root"):
                assert (await asyncio.to_thread(post, server.url, COMPLETIONS, SAY, bearer(key)))[0] == 200
            assert (await asyncio.to_thread(send, server.url, "GET", "/version", None, bearer("one")))[0] == 200
        await until(lambda: bool(server.engine.aborted))
        assert (await asyncio.to_thread(post, server.url, COMPLETIONS, SAY, bearer("one")))[0] == 200


def test_a_key_over_its_rate_is_told_when_to_come_back(serve: Serve) -> None:
    url = serve(ServerOptions(api_key=("one", "two"), rate_limit_per_key=2)).url
    assert [post(url, COMPLETIONS, SAY, bearer("one"))[0] for _ in range(3)] == [200, 200, 429]
    assert post(url, COMPLETIONS, SAY, bearer("one"))[1]["Retry-After"] in ("29", "30")
    assert post(url, COMPLETIONS, SAY, bearer("two"))[0] == 200


# --- of all together -----------------------------------------------------------------------------------------


def test_the_queue_takes_one_request_of_any_length_and_no_more() -> None:
    queue = PromptQueue(10)
    with queue.waiting(50) as leave:
        with pytest.raises(QueueFull, match="50 prompt tokens"), queue.waiting(1):
            pass
        leave()
        leave()
        with queue.waiting(4), queue.waiting(6):
            assert queue.tokens == 10
    assert queue.tokens == 0


async def test_prompts_wait_until_their_first_token(serve: Serve) -> None:
    server = serve(ServerOptions(max_queued_tokens=10))
    server.engine.stall_after = 0
    async with aiohttp.ClientSession(server.url) as session:
        waiting = asyncio.create_task(session.post(COMPLETIONS, json={**SAY, "prompt": [5] * 8, "n": 3}))
        await until(lambda: len(server.engine.requests) == 3)
        answer = await asyncio.to_thread(post, server.url, COMPLETIONS, {**SAY, "prompt": [5] * 3})
        assert_refused(answer, 429, None, "8 prompt tokens", "--max-queued-tokens 10")
        assert answer[1]["Retry-After"] == "1" and len(server.engine.requests) == 3
        server.engine.stall_after = None
        assert (await asyncio.to_thread(post, server.url, COMPLETIONS, {**SAY, "prompt": [5] * 2}))[0] == 200
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: {one.request_id for one in server.engine.requests[:3]} <= set(server.engine.aborted))
    assert (await asyncio.to_thread(post, server.url, COMPLETIONS, {**SAY, "prompt": [5] * 10}))[0] == 200


# --- clients that are slow -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(serve: Serve) -> Any:
    return serve(ServerOptions(keepalive_timeout=0.2, body_timeout=0.2, send_timeout=0.2))


def connect(server: Any) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comple", b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: "])
def test_a_head_that_does_not_come_ends_the_connection(impatient: Any, sent: bytes) -> None:
    with connect(impatient) as client:
        client.sendall(sent)
        assert client.recv(100) == b""


def test_so_does_the_next_head_on_a_connection(impatient: Any) -> None:
    with connect(impatient) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET")
        answer = b""
        while received := client.recv(1000):
            answer += received
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP/1.1") == 1


def test_a_body_that_does_not_come_is_408(impatient: Any) -> None:
    with connect(impatient) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        answer = client.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    error = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "slow_body" and "--body-timeout" in error["message"]


def test_a_stream_whose_reader_takes_nothing_is_ended(impatient: Any) -> None:
    body = msgspec.json.encode({"prompt": "a", "n": 128, "max_tokens": 500, "ignore_eos": True, "stream": True})
    with connect(impatient) as client:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        client.sendall(head + body)
        running = []
        while not running or running[-1]:  # more is sent than the system's buffers hold
            running.append(send(impatient.url, "GET", "/load")[2]["server_load"])
            time.sleep(0.02)
        assert 1 in running
        received = b""
        with contextlib.suppress(ConnectionError):
            while more := client.recv(1 << 20):
                received = received[-100:] + more
        assert received and b"[DONE]" not in received
