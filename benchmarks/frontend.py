"""The HTTP frontend alone: `python benchmarks/frontend.py [--connections N] [--tokens N]`.

A frontend in a process of its own, with the demo model's tokenizer, in front of an engine that gives every stream a token
in each turn of the event loop; what is measured is everything a token costs from there to the socket: detokenizing, the
events, the writes. The client only reads. CPU time is the frontend's own, of one process; median of 5 runs with the
slowest and the fastest.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncGenerator
from multiprocessing.connection import Connection

import psutil
import uvloop
from aiohttp import web

from core.config import Config, Options, resolve
from core.engine.client import EngineClient
from core.engine.messages import EngineStatus
from core.extensions import NO_EXTENSIONS
from core.server.app import app_runner, create_app
from core.server.options import ServerOptions
from core.tokenization import load_tokenizer
from core.types import EngineRequest, EngineStats, RequestDelta

RUNS = 5
_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"


class InstantEngine(EngineClient):
    """Ordinary words, one to each stream in a turn of the event loop."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(state="ready")

    async def wait_ready(self) -> None:
        return

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestDelta, None]:
        last = request.params.max_tokens
        assert last is not None
        for count in range(1, last + 1):
            await asyncio.sleep(0)
            yield RequestDelta(request.request_id, [1000 + count % 20_000], "length" if count == last else None)

    async def abort(self, request_id: str) -> None:
        return

    async def stats(self) -> EngineStats:
        return EngineStats()

    async def reset_prefix_cache(self) -> bool:
        return True

    async def close(self) -> None:
        return


def serve(port: Connection, engine: type[InstantEngine] = InstantEngine) -> None:
    """The frontend's process: says its port, and serves until it is killed."""
    uvloop.run(_serve(port, engine))


async def _serve(port: Connection, engine: type[InstantEngine]) -> None:
    config = resolve(None, Options(), NO_EXTENSIONS)
    tokenizer = load_tokenizer(config.model.tokenizer_path)
    runner = app_runner(create_app(engine(config), tokenizer, ServerOptions()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port.send(runner.addresses[0][1])
    await asyncio.Event().wait()


async def stream(port: int, tokens: int) -> int:
    """One stream from start to end; its events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    body = b'{"prompt":"a","stream":true,"ignore_eos":true,"max_tokens":%d}' % tokens
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    events, tail = 0, b""
    while not tail.endswith(_END):
        received = await reader.read(1 << 16)
        if not received:
            raise ConnectionError(f"a stream ended with {tail!r}")
        events += received.count(b"data: ")
        tail = (tail + received)[-len(_END) :]
    writer.close()
    return events - 1


async def run(port: int, connections: int, tokens: int) -> tuple[float, int]:
    """Seconds and events of all streams."""
    started = time.perf_counter()
    events = await asyncio.gather(*(stream(port, tokens) for _ in range(connections)))
    return time.perf_counter() - started, sum(events)


def main() -> None:
    """Print tokens a second, and the frontend's CPU time a token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    port, watched = ours.recv(), psutil.Process(process.pid)
    total = arguments.connections * arguments.tokens
    rates, costs, merged = [], [], []
    for number in range(RUNS + 1):
        before = sum(watched.cpu_times()[:2])
        seconds, events = uvloop.run(run(port, arguments.connections, arguments.tokens))
        if number:  # the first run warms up
            rates.append(total / seconds)
            costs.append((sum(watched.cpu_times()[:2]) - before) / total * 1e6)
            merged.append(total / events)
    process.terminate()
    print(
        f"{arguments.connections} streams of {arguments.tokens} tokens, {statistics.median(merged):.2f} tokens an event"
    )
    print(f"{statistics.median(rates):,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f})")
    print(f"{statistics.median(costs):.1f} µs of CPU a token ({min(costs):.1f} to {max(costs):.1f})")


if __name__ == "__main__":
    main()
