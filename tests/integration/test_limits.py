"""What a server does when there is more to do than it can, or is told to end: with one request running at a time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_server import ONE_THREAD, RealServer, events, real_server, until

pytestmark = pytest.mark.slow

ENDLESS = {"prompt": "a", "max_tokens": 16_000, "ignore_eos": True, "temperature": 0}


@contextmanager
def occupied(server: RealServer) -> Iterator[None]:
    """The server's only row is taken."""
    connection, response = server.stream("/v1/completions", ENDLESS)
    try:
        next(events(response))
        yield
    finally:
        response.close()
        connection.close()


def until_waiting(server: RealServer, count: int) -> None:
    until(lambda: server.figure("num_requests_waiting") == count)


def test_a_full_queue_is_429_with_the_time_to_come_back(single_server: RealServer) -> None:
    with ThreadPoolExecutor() as pool:
        with occupied(single_server):
            waiting = [pool.submit(single_server.complete, max_tokens=1) for _ in range(2)]
            until_waiting(single_server, 2)
            status, headers, body = single_server.complete(max_tokens=1)
        assert status == 429 and int(headers["Retry-After"]) >= 1
        assert (body["error"]["type"], body["error"]["code"]) == ("rate_limit_error", "queue_full")
        assert [future.result()[0] for future in waiting] == [200, 200]


def test_a_deadline_before_the_first_token_is_408(single_server: RealServer) -> None:
    with occupied(single_server):
        status, _, body = single_server.complete(max_tokens=1, deadline_ms=100)
    assert (status, body["error"]["param"], body["error"]["type"]) == (408, "deadline_ms", "timeout_error")


def test_a_deadline_within_a_stream_ends_it(single_server: RealServer) -> None:
    connection, response = single_server.stream("/v1/completions", {**ENDLESS, "deadline_ms": 1000})
    chunks = list(events(response))
    connection.close()
    assert 1 < len(chunks) < 16_000 and chunks[-1]["choices"][0]["finish_reason"] == "deadline"


def test_the_more_urgent_request_runs_first(single_server: RealServer) -> None:
    order: list[int] = []

    def ask(priority: int) -> None:
        assert single_server.complete(max_tokens=200, ignore_eos=True, priority=priority)[0] == 200
        order.append(priority)

    with ThreadPoolExecutor() as pool:
        asked: list[Future[None]] = []
        with occupied(single_server):
            for waiting, priority in enumerate((9, 5), start=1):
                asked.append(pool.submit(ask, priority))
                until_waiting(single_server, waiting)
        for future in asked:
            future.result()
    assert order == [5, 9]


# --- the end -------------------------------------------------------------------------------------------------


def test_sigterm_finishes_what_runs_and_refuses_what_comes(long_tiny_model: Path) -> None:
    """It goes to every process, as service managers send it."""
    with real_server(str(long_tiny_model), "--kv-cache-memory", "64MiB", *ONE_THREAD) as server:
        connection, response = server.stream(
            "/v1/completions", {**ENDLESS, "max_tokens": 2000, "stream_options": {"include_usage": True}}
        )
        everyone = server.tree()
        assert len(everyone) == 3
        for process in everyone:
            process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/readyz")[1]["state"] == "draining")
        assert server.get("/readyz")[0] == 503
        status, headers, body = server.complete(max_tokens=1)
        assert status == 503 and "Retry-After" in headers and "shutting down" in body["error"]["message"]
        *_, last = events(response)
        assert last["usage"]["completion_tokens"] == 2000
        assert server.process.wait(60) == 0
        connection.close()
        assert not any(process.is_running() for process in everyone) and not list(server.directory.iterdir())
