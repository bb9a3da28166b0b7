"""What this machine can do at most: `python benchmarks/roofline.py`.

Read bandwidth over buffers of 8 to 1024 MiB, and the peak of the best instruction that the kernels multiply with, both
by the engine's own threads. The other benchmarks hold their figures against these, measured in the same run. Median of
5 runs with the slowest and the fastest. Prints a Markdown table.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.platform import Platform, PlatformContext
from core.types import DType
from platforms._shared import _native, host
from platforms.cpu import plugin

RUNS = 5
MIB = 1 << 20
SIZES = [size * MIB for size in (8, 16, 32, 64, 96, 128, 256, 512, 1024)]
_READ_AT_LEAST = 256 * MIB  # in a run: small buffers several times
_ROUNDS = 2_000_000


@dataclass(frozen=True)
class Rate:
    """Something per second: the median of the runs, the slowest and the fastest."""

    median: float
    least: float
    most: float

    def show(self, unit: float) -> str:
        """In `unit`s, with the spread."""
        return f"{self.median / unit:.1f} ({self.least / unit:.1f} to {self.most / unit:.1f})"


def rate(run: Callable[[], float]) -> Rate:
    """`run` returns how much it did."""
    run()
    rates = []
    for _ in range(RUNS):
        start = time.perf_counter()
        done = run()
        rates.append(done / (time.perf_counter() - start))
    return Rate(statistics.median(rates), min(rates), max(rates))


def read_bandwidth(size: int) -> Rate:
    """Bytes a second, reading a buffer of `size` bytes front to back; it lies in huge pages, as weights do."""
    memory = platform().memory()
    buffer = memory.alloc((size,), DType.UINT8, "inputs")
    buffer.fill_(1)
    repeats = max(1, _READ_AT_LEAST // size)

    def run() -> float:
        for _ in range(repeats):
            _native.read_memory(buffer.data_ptr(), size)
        return repeats * size

    found = rate(run)
    memory.free(buffer)
    return found


def peak(dtype: str) -> Rate:
    """FLOP/s with everything in registers."""
    return rate(lambda: _native.multiply(dtype, _ROUNDS))


class Elsewhere:
    """What part of the machine other processes kept busy since this was made: a noisy run shows in its own table."""

    def __init__(self) -> None:
        self._start, self._others = time.perf_counter(), self._busy()

    @staticmethod
    def _busy() -> float:
        """Seconds of all cores' time, this process's own taken off (proc(5), /proc/stat)."""
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, *interrupts = map(int, fields[:8])
        ticks = user + nice + system + sum(interrupts)
        own = os.times()
        return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system

    def share(self) -> float:
        """0 to 1, of the cores that this process may use."""
        elapsed = time.perf_counter() - self._start
        return max(0.0, (self._busy() - self._others) / elapsed / host.usable_cores())


@cache
def platform() -> Platform:
    """The platform as the engine makes it, which sets the threads."""
    return plugin.create_platform(PlatformContext())


def machine() -> str:
    """One line: processor, system, threads, tier."""
    threads = f"{_native.num_threads()} threads of {host.usable_cores()} cores"
    return f"{host.processor().model}, {os.uname().sysname} {os.uname().release}, {threads}, {_native.isa()} kernels"


def main() -> None:
    platform()
    print(f"{machine()}\n\n| read, MiB | GB/s |\n|---|---|")
    for size in SIZES:
        print(f"| {size // MIB} | {read_bandwidth(size).show(1e9)} |")
    print("\n| products | GFLOP/s |\n|---|---|")
    for dtype in ("float32", "bfloat16"):
        print(f"| {dtype} | {peak(dtype).show(1e9)} |")


if __name__ == "__main__":
    main()
