"""`core serve --api-server-count 2`: what is counted is the server's, whichever frontend served it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from real_server import ONE_THREAD, RealServer, real_server, until

pytestmark = pytest.mark.slow


def frontends(server: RealServer) -> list[psutil.Process]:
    """Those that have bound the socket under which the others reach them."""
    sockets = {connection.pid for connection in psutil.net_connections("unix") if "/frontend-" in str(connection.laddr)}
    return [process for process in server.tree() if process.pid in sockets]


def test_a_scrape_sees_all_frontends_and_those_that_have_died(tiny_model: Callable[[str], Path]) -> None:
    options = ("--api-server-count", "2", "--kv-cache-memory", "64MiB", *ONE_THREAD)
    with real_server(str(tiny_model("llama")), *options) as server, ThreadPoolExecutor(8) as pool:

        def ask(count: int) -> None:
            answers = list(pool.map(lambda _: server.complete("a", max_tokens=3, ignore_eos=True), range(count)))
            assert [status for status, _, _ in answers] == [200] * count

        ask(16)
        assert [server.figure("e2e_request_latency_seconds_count") for _ in range(8)] == [16] * 8
        victim = frontends(server)[0]
        victim.send_signal(signal.SIGKILL)
        until(lambda: len(frontends(server)) == 2 and victim not in frontends(server))
        ask(16)
        assert [server.figure("e2e_request_latency_seconds_count") for _ in range(8)] == [32] * 8
        assert [server.figure("request_generation_tokens_sum") for _ in range(2)] == [96] * 2
