"""What a hostile client costs its neighbours: `python benchmarks/hostile.py [--seconds S] [--streams N]`.

A frontend in a process of its own, in front of an engine that gives every stream a token each 20 ms. Streams of
well-behaved clients go on while another process attacks, one attack after the other, as fast as it is answered; what is
measured is the time between the tokens of the well-behaved, quiet and under each attack.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from multiprocessing.connection import Connection

import uvloop
from frontend import InstantEngine, serve

from core.types import EngineRequest, RequestDelta

STEP_S = 0.02
WARM_UP_S = 1.0
_REGEX = {"prompt": "a", "max_tokens": 1, "structured_outputs": {"regex": "(((a{1,99}){1,99}){1,99}){1,99}"}}


class SteadyEngine(InstantEngine):
    """A token to each stream at each multiple of `STEP_S`."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestDelta, None]:
        last = request.params.max_tokens
        assert last is not None
        loop = asyncio.get_running_loop()
        for count in range(1, last + 1):
            await asyncio.sleep(STEP_S - loop.time() % STEP_S)
            yield RequestDelta(request.request_id, [1000 + count % 20_000], "length" if count == last else None)


# --- attacks: each is one blow, over a connection that it may give back for the next ---------------------------


def _send(port: int, data: bytes, part: bytes = b"", *, parts: int = 0) -> None:
    """Send `data` and so many times the `part`; wait for the beginning of an answer or the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client, contextlib.suppress(OSError):
        client.sendall(data)
        for _ in range(parts):
            client.sendall(part)
        client.recv(1 << 16)


def _post(body: bytes) -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _json(body: object) -> bytes:
    return _post(json.dumps(body).encode())


_held: list[socket.socket] = []


def _hold(port: int, data: bytes, most: int) -> None:
    """Send, and read nothing; of `most` such connections none ends."""
    if len(_held) < most:
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        client.sendall(data)
        _held.append(client)
    time.sleep(0.01)


_SLOW_READER = _json({"prompt": "a", "stream": True, "n": 16, "max_tokens": 8000, "ignore_eos": True})
_HUGE = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 104857600\r\n\r\n"
_HALF = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
_CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_MILLION = _json({"prompt": [5] * 1_000_000})
_TEXT = _json({"prompt": "word " * 1_000_000})
_NESTED = _post(b'{"messages":' + b"[" * 2_000_000)
_GARBAGE = b"".join(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" for _ in range(100)) + b"\x00\xff garbage\r\n\r\n"

ATTACKS: dict[str, Callable[[int], None]] = {
    "readers that stop": lambda port: _hold(port, _SLOW_READER, 8),
    "half a request": lambda port: _hold(port, _HALF, 500),
    "pipelined garbage": lambda port: _send(port, _GARBAGE),
    "100 MB body": lambda port: _send(port, _HUGE + b" " * (1 << 20)),
    "100 MB in chunks": lambda port: _send(port, _CHUNKED, b"100000\r\n%b\r\n" % (b"x" * (1 << 20)), parts=100),
    "a million tokens": lambda port: _send(port, _MILLION),
    "5 MB of text": lambda port: _send(port, _TEXT),
    "nested JSON": lambda port: _send(port, _NESTED),
    "nested repeats": lambda port: _send(port, _json(_REGEX)),
}


def attack(port: int, name: str, blows: Connection) -> None:
    """The attacker's process; says after each blow how long it took."""
    while True:
        started = time.perf_counter()
        ATTACKS[name](port)
        blows.send(time.perf_counter() - started)


# --- neighbours ----------------------------------------------------------------------------------------------


async def neighbour(port: int, until: float) -> list[float]:
    """The seconds between one stream's tokens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(_json({"prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": 8000}))
    times: list[float] = []
    while not times or times[-1] < until:
        received = await reader.read(1 << 16)
        if not received:
            raise ConnectionError("a neighbour's stream ended")
        times.append(time.perf_counter())
    writer.close()
    return [later - earlier for earlier, later in itertools.pairwise(times[2:])]


async def intervals(port: int, streams: int, seconds: float) -> list[float]:
    """Of all neighbours."""
    until = time.perf_counter() + seconds
    found = await asyncio.gather(*(neighbour(port, until) for _ in range(streams)))
    return sorted(interval for one in found for interval in one)


def measure(port: int, name: str | None, streams: int, seconds: float) -> tuple[float, float, int]:
    """ITL p50 and p99 in seconds, and the blows that fell."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = multiprocessing.Pipe()
    attacker = context.Process(target=attack, args=(port, name, theirs), daemon=True)
    if name is not None:
        attacker.start()
        ours.recv()  # it has begun
    found = uvloop.run(intervals(port, streams, seconds))
    blows = 0
    while ours.poll():
        ours.recv()
        blows += 1
    if name is not None:
        attacker.terminate()
        attacker.join()
    return statistics.median(found), found[int(len(found) * 0.99)], blows


def main() -> None:
    """Print the intervals quiet and under each attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack")
    parser.add_argument("--streams", type=int, default=16, help="neighbours")
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, SteadyEngine), daemon=True)
    process.start()
    port = ours.recv()
    measure(port, None, arguments.streams, WARM_UP_S)
    print(f"{'':24}{'ITL p50':>10}{'p99':>10}{'blows/s':>10}")
    for name in (None, *ATTACKS, None):
        p50, p99, blows = measure(port, name, arguments.streams, arguments.seconds)
        print(
            f"{name or 'quiet':24}{p50 * 1e3:>7.1f} ms{p99 * 1e3:>7.1f} ms{blows / arguments.seconds:>10.1f}",
            flush=True,
        )
    process.terminate()


if __name__ == "__main__":
    main()
