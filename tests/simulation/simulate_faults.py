"""Run many seeds, or look closely at one: `make simulate-faults SEEDS=50000`, `make simulate-faults SEED=1234 VERBOSE=1`.

Ends with status 1 at the first seed that violates an invariant, with the line that replays it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from harness.dice import draw
from harness.scenario import Scenario
from harness.shrinking import shrink, violation_of
from harness.trace import Violation
from harness.world import World

from core.progress import ProgressBar

#: Seeds that a process takes at a time.
CHUNK = 25
#: Lines of the trace before the violation that are shown unasked.
TAIL = 25

Failure = tuple[int, Violation]


def failures_in(seeds: Iterable[int]) -> list[Failure]:
    """The first seed of these that violates an invariant, and which; nothing if none does."""
    for seed in seeds:
        violation = violation_of(draw(seed))
        if violation is not None:
            return [(seed, violation)]
    return []


def simulate(first: int, count: int, *, jobs: int | None = None) -> Iterator[tuple[int, list[Failure]]]:
    """Seeds first … first + count - 1 in `jobs` processes, one for each core by default: (how many more are done, and
    which of them failed)."""
    chunks = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(jobs or os.cpu_count()) as pool:
        yield from pool.imap_unordered(_simulate_chunk, chunks)


def _simulate_chunk(seeds: range) -> tuple[int, list[Failure]]:
    return len(seeds), failures_in(seeds)


def replay(seed: int) -> str:
    """The command that shows what happens in a seed."""
    return f"make simulate-faults SEED={seed} VERBOSE=1"


def trace(scenario: Scenario) -> list[str]:
    """What happens, line by line."""
    world = World(scenario, keep_trace=True)
    with suppress(Violation):  # it is the last line
        world.run()
    return world.trace.lines


def report(seed: int, violation: Violation) -> str:
    """What went wrong in a seed, the smallest scenario in which it does, and how to see all of it."""
    smallest = shrink(draw(seed), violation.invariant)
    who = ", ".join(arrival.name for arrival in smallest.arrivals)
    lines = [
        f"seed {seed}: {violation}",
        f"it takes {who or 'nobody'}, {smallest.shape} and {smallest.faults}:",
        *trace(smallest)[-TAIL:],
        f"the whole story: {replay(seed)}",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if every invariant held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--verbose", action="store_true", help="show all that happens, seed after seed")
    parser.add_argument("--jobs", type=int, help="processes (default: one for each core)")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    if options.verbose:
        for seed in seeds:
            print(f"seed {seed}", *trace(draw(seed)), sep="\n")
    if options.verbose or len(seeds) == 1:
        return _finish(failures_in(seeds), len(seeds))
    with ProgressBar("simulating", total=len(seeds), unit="seeds") as bar:
        for done, failures in simulate(options.first, options.seeds, jobs=options.jobs):
            bar.advance(done)
            if failures:
                break
    return _finish(failures, len(seeds))


def _finish(failures: list[Failure], count: int) -> int:
    for seed, violation in failures:
        print(report(seed, violation), file=sys.stderr)
    if not failures:
        print(f"every invariant held in {count} seed{'s' * (count != 1)}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
