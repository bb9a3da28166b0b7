"""What a server's processes take together: `python benchmarks/memory.py [--kv-cache-memory 1GiB] [MODEL]`.

The figure is the proportional set size (proc(5), smaps_rollup): pages that several processes share count once in all.
It is read when every block of the KV cache has been written, five times, each after a burst of requests. Goal: no more
than 600 MB beyond the weights and the KV cache of the plan.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from core.bench.figures import machine
from core.bench.server import served

SAMPLES = 5
PROMPT_TOKENS = 1000
CONCURRENCY = 8
GOAL = 600e6
_MB = 1e6


def planned(arguments: list[str]) -> dict[str, Any]:
    """The memory plan, sizes in bytes."""
    command = [sys.executable, "-m", "core.cli.main", "plan", *arguments, "--json"]
    plan: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return plan


async def send(url: str, requests: int, output_tokens: int, seed: int) -> None:
    """Requests that have no prefix in common: each block that they fill is taken from the pool's other end."""
    source = random.Random(seed)
    prompts = iter([source.choices(range(1000, 40_000), k=PROMPT_TOKENS) for _ in range(requests)])
    timeout = aiohttp.ClientTimeout(total=None)

    async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session:

        async def client() -> None:
            for prompt in prompts:
                body = {"prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True}
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    await response.read()

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))


def sizes(supervisor: int) -> dict[str, int]:
    """Bytes of each process of the server."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    found = {"supervisor": proportional_set_size(supervisor)}
    for child in map(int, children):
        engine = "libtorch" in Path(f"/proc/{child}/maps").read_text()
        found["engine" if engine else f"frontend {child}"] = proportional_set_size(child)
    return found


def proportional_set_size(pid: int) -> int:
    """Bytes of one process, of shared pages its part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss")


def show(plan: dict[str, Any], samples: list[dict[str, int]]) -> None:
    """The last sample by process, and the excess of them all."""
    known = plan["weights"] + plan["kv_cache"]
    for name, size in samples[-1].items():
        print(f"{name:<24}{size / _MB:>10,.1f} MB")
    for name in ("weights", "kv_cache", "activations", "inputs"):
        print(f"plan: {name:<18}{plan[name] / _MB:>10,.1f} MB")
    excesses = [sum(sample.values()) - known for sample in samples]
    median = statistics.median(excesses)
    print(
        f"beyond weights and KV   {median / _MB:>10,.1f} MB   {min(excesses) / _MB:,.1f} … {max(excesses) / _MB:,.1f}, "
        f"median of {len(excesses)}; goal {GOAL / _MB:,.0f}: {'met' if median <= GOAL else 'MISSED'}"
    )


def main() -> None:
    """Serve, fill the cache, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the demo")
    parser.add_argument("--kv-cache-memory", default="1GiB", help="(default: %(default)s)")
    given = parser.parse_args()
    arguments = [*([given.model] if given.model else []), "--kv-cache-memory", given.kv_cache_memory]
    plan = planned(arguments)
    fill = -(-plan["kv_tokens"] // PROMPT_TOKENS) + CONCURRENCY
    print(machine())
    print(f"{plan['model']} in {plan['dtype']}; {fill} distinct prompts of {PROMPT_TOKENS} tokens fill the KV cache")
    with served(arguments, timeout=600) as server:
        fresh = sum(sizes(server.pid).values())
        begin = time.perf_counter()
        asyncio.run(send(server.url, fill, 1, seed=0))
        print(f"ready {fresh / _MB:,.1f} MB; filled in {time.perf_counter() - begin:.0f} s")
        samples = []
        for number in range(SAMPLES):
            asyncio.run(send(server.url, CONCURRENCY, 16, seed=number + 1))
            samples.append(sizes(server.pid))
    show(plan, samples)


if __name__ == "__main__":
    main()
