"""Clients that mean harm, or leave by the hundred: contained, and the others are served on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from fake_server import FakeEngine, make_config, make_tokenizer
from plain_http import assert_refused, post, send

from core.server.app import app_runner, create_app
from core.server.options import ServerOptions
from core.server.state import STATE

Serve = Callable[..., Any]
COMPLETIONS = "/v1/completions"
MEBIBYTE = b"x" * (1 << 20)


@pytest.fixture(autouse=True)
def serves_on(server: Any) -> Iterator[None]:
    """Whatever a test has done to the server, the next request is answered, and nothing runs any more."""
    yield
    server.engine.reset()
    status, _, answer = post(server.url, COMPLETIONS, {"prompt": "a", "max_tokens": 3})
    assert status == 200 and answer["usage"]["completion_tokens"] == 3
    deadline = time.monotonic() + 15
    while send(server.url, "GET", "/load")[2]["server_load"]:
        assert time.monotonic() < deadline, "a request was never let go"
        time.sleep(0.02)


def connect(server: Any) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def head(length: int, more: str = "") -> bytes:
    return f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def process_memory() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb_is_refused_and_never_held(server: Any, chunked: bool) -> None:
    before = process_memory()
    with connect(server) as client, contextlib.suppress(ConnectionError):
        if chunked:
            client.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        else:
            client.sendall(head(100 << 20))
        for _ in range(100):
            client.sendall(b"%x\r\n%s\r\n" % (len(MEBIBYTE), MEBIBYTE) if chunked else MEBIBYTE)
            client.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                assert status_of(client.recv(10_000)) == 413
                break
            client.settimeout(20)
        else:
            assert status_of(client.recv(10_000)) == 413
    assert process_memory() - before < 40 << 20


def test_a_body_that_swells_is_refused(server: Any) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(MEBIBYTE) for _ in range(256)) + packer.flush()
    before = process_memory()
    assert_refused(send(server.url, "POST", COMPLETIONS, bomb, {"Content-Encoding": "deflate"}), 413, None)
    assert process_memory() - before < 128 << 20


def test_a_prompt_of_a_million_tokens_is_refused_by_its_number(server: Any) -> None:
    status, _, answer = post(server.url, COMPLETIONS, json.dumps({"prompt": [5] * 1_000_000}).encode())
    assert status == 400 and "1000000 tokens" in answer["error"]["message"]
    assert server.engine.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2_000_000,
        b'{"a":' * 1_000_000,
        b'{"prompt": "a", "vllm_xargs": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
        b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"prompt": "a", "logit_bias": {' + b",".join(b'"%d": 1' % number for number in range(100_000)) + b"}}",
        b"{" + b",".join(b'"q%d": 1' % number for number in range(20_000)) + b', "prompt": "a", "max_tokens": 1}',
        b'{"prompt": "a", "temperature": ' + b"9" * 1_000_000 + b"}",
    ],
    ids=["arrays", "objects", "xargs", "messages", "biases", "fields", "number"],
)
def test_json_that_is_made_to_hurt_is_answered_at_once(server: Any, body: bytes) -> None:
    started = time.monotonic()
    status, _, answer = post(server.url, COMPLETIONS, body)
    assert status in (200, 400) and (status == 200 or answer["error"]["message"])
    assert time.monotonic() - started < 20  # a hang, not a speed: a busy machine is slow


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x99" * 500,  # TLS on a plain port
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        head(5, "Transfer-Encoding: chunked\r\n") + b"0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",  # which end is it?
        head(5, "Content-Length: 6\r\n") + b"hello!",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnot a number\r\n",
        b"\r\n" * 50_000,
    ],
    ids=["zeros", "tls", "header", "headers", "path", "smuggled", "lengths", "chunk", "empty"],
)
def test_garbage_is_refused_or_dropped(server: Any, garbage: bytes) -> None:
    with connect(server) as client, contextlib.suppress(ConnectionError):
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while received := client.recv(1 << 16):
            answer += received
        assert not answer or 400 <= status_of(answer) < 500, answer[:200]
        assert not answer or error_in(answer)["type"] == "invalid_request_error"


def error_in(answer: bytes) -> dict[str, Any]:
    """The error of the last of the answers, which must be in the shape of all others, under an id."""
    start, _, body = answer[answer.rindex(b"HTTP/1.") :].partition(b"\r\n\r\n")
    assert b"\r\nX-Request-Id: " in start and b"\r\nContent-Type: application/json" in start
    error: dict[str, Any] = json.loads(body)["error"]
    return error


def test_what_is_not_http_is_refused_in_the_shape_of_all_errors(server: Any) -> None:
    with connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n")
        answer = client.recv(1 << 16)
    error = error_in(answer)
    assert status_of(answer) == 400 and error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == "malformed_http" and "Content-Length" in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/messages", "/nowhere"])
def test_an_expectation_that_nobody_can_meet(server: Any, path: str) -> None:
    with connect(server) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\nContent-Length: 2\r\n\r\n".encode())
        answer = client.recv(1 << 16)
    assert status_of(answer) == 417 and "wonders" in error_in(answer)["message"]
    assert (b'"type":"error"' in answer) == (path == "/v1/messages")


def test_requests_in_a_pipeline_are_answered_and_then_the_garbage_is_refused(server: Any) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    with connect(server) as client:
        client.sendall((head(len(body)) + body) * 5)
        answer = b""
        while answer.count(b'"usage"') < 5:
            answer += client.recv(1 << 16)
        assert answer.count(b"HTTP/1.1 200 ") == 5
        client.sendall(b"\x00\xff garbage \r\n\r\n")
        rest = b""
        with contextlib.suppress(ConnectionError):
            while received := client.recv(1 << 16):
                rest += received
    assert not rest or status_of(rest) == 400


async def test_a_reader_that_stops_does_not_slow_the_others(server: Any) -> None:
    body = json.dumps({"prompt": "a", "n": 64, "max_tokens": 400, "ignore_eos": True, "stream": True}).encode()
    loop = asyncio.get_running_loop()
    stopped = [await loop.run_in_executor(None, connect, server) for _ in range(8)]
    for client in stopped:
        client.sendall(head(len(body)) + body)
    answer = await asyncio.wait_for(
        asyncio.to_thread(post, server.url, COMPLETIONS, {"prompt": "a", "max_tokens": 50}), 20
    )
    assert answer[0] == 200
    for client in stopped:
        client.close()


@pytest.mark.slow
async def test_a_thousand_streams_of_which_a_tenth_are_cut_leave_nothing_behind() -> None:
    """The server and its clients in this one process, in which tasks and memory are counted after a first round."""
    tokenizer = make_tokenizer(None)
    engine = FakeEngine(make_config(), tokenizer)
    app = create_app(engine, tokenizer, ServerOptions(log_requests=False))
    runner = app_runner(app, shutdown_timeout=1)
    await runner.setup()
    server = await asyncio.get_running_loop().create_server(runner.server, "127.0.0.1", 0, backlog=2048)
    port = server.sockets[0].getsockname()[1]
    dice = random.Random(1)
    counts = []
    for _ in range(3):
        cut = [dice.random() < 0.1 for _ in range(1000)]
        whole = await asyncio.gather(*(_stream(port, leaves=leaves, dice=dice) for leaves in cut))
        assert whole.count(True) == cut.count(False), "a stream that its client did not cut came to no end"
        await app[STATE].wait_idle()
        engine.requests.clear()
        engine.aborted.clear()
        async with asyncio.timeout(20):
            while runner.server is not None and runner.server.connections:
                await asyncio.sleep(0.01)
        counts.append((len(asyncio.all_tasks()), process_memory()))
    (tasks, memory), *_, (last_tasks, last_memory) = counts
    assert last_tasks == tasks == 1
    assert app[STATE].load == 0 and app[STATE].prompt_queue.tokens == 0
    assert last_memory < memory * 1.05
    server.close()
    await runner.cleanup()


async def _stream(port: int, *, leaves: bool, dice: random.Random) -> bool:
    """Whether the stream came to its end."""
    await asyncio.sleep(dice.random() * 0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"prompt": "say", "stream": true, "ignore_eos": true, "max_tokens": 20}'
    writer.write(head(len(body), "Connection: close\r\n") + body)
    try:
        if leaves:
            await reader.read(dice.randrange(1, 4000))
            writer.transport.abort()
            return False
        received = await reader.read()
        return b"HTTP/1.1 200 " in received and received.count(b'"text"') >= 1 and b"data: [DONE]" in received
    finally:
        writer.close()
