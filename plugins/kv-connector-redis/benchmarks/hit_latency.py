"""What a prefix found in Redis saves: seconds to the first token when it is computed, brought, or already on the device.

python plugins/kv-connector-redis/benchmarks/hit_latency.py [--model MODEL] [--url URL]

The package has to be installed beside core. Without --url it starts a redis-server of its own on a unix socket.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from core import LLM, SamplingParams

LENGTHS = (256, 512, 1024, 2000)
REPEATS = 3
FIRST_TOKEN = SamplingParams(temperature=0.0, max_tokens=1)


@contextmanager
def own_redis() -> Iterator[str]:
    """A redis-server that ends with the benchmark."""
    with tempfile.TemporaryDirectory(prefix="r") as directory:
        socket = Path(directory, "redis.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", directory, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


def engine(model: str | None, url: str) -> LLM:
    """An engine with nothing in its own cache."""
    options = {"kv_connector": "redis", "plugin_opt": (f"redis.url={url}",), "max_model_len": 2048}
    return LLM(model, progress=False, **options)


def prompts(vocab_size: int, length: int) -> list[list[int]]:
    rng = random.Random(length)
    return [[rng.randrange(vocab_size) for _ in range(length)] for _ in range(REPEATS)]


def timed(llm: LLM, prompt: list[int]) -> float:
    began = time.perf_counter()
    llm.generate(prompt, FIRST_TOKEN)
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(model: str | None, url: str) -> None:
    """Compute and save with one engine, then find with another."""
    with engine(model, url) as llm:
        vocab = llm.engine.config.model.vocab_size
        plan = llm.engine.memory_plan
        computed = {length: median([timed(llm, p) for p in prompts(vocab, length)]) for length in LENGTHS}
        while (stats := llm.engine.stats().kv_transfers).saved + stats.dropped < sum(LENGTHS) // 16 * REPEATS:
            llm.generate([1], FIRST_TOKEN)
        print(f"saved {stats.saved} blocks, dropped {stats.dropped}")
    with redis.Redis.from_url(url) as client:
        used = client.info("memory")["used_memory_dataset"]
    with engine(model, url) as llm:
        brought = {length: median([timed(llm, p) for p in prompts(vocab, length)]) for length in LENGTHS}
        local = {length: median([timed(llm, p) for p in prompts(vocab, length)]) for length in LENGTHS}
        found = llm.engine.stats().external_prefix_hits
    tokens = stats.saved * plan.block_size
    print(f"{plan.kv_block_bytes / plan.block_size:,.0f} bytes of KV a token, {used / tokens:,.0f} in Redis")
    print(f"{found} tokens brought\n\ntokens  computed   brought  on the device")
    for length in LENGTHS:
        print(f"{length:6}  {computed[length]:7.3f} s {brought[length]:7.3f} s  {local[length]:7.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the demo model")
    parser.add_argument("--url", help="of a Redis that may be filled; default: one of its own")
    arguments = parser.parse_args()
    if arguments.url:
        measure(arguments.model, arguments.url)
        return
    with own_redis() as url:
        measure(arguments.model, url)


if __name__ == "__main__":
    main()
