"""Simulated against measured: `python benchmarks/sim_validation.py [--calibrate OUT.json]`.

Makes a profile of this machine's CPU platform, and predicts with it the output throughput that clients see of the demo
model at 1, 8 and 32 streams; then serves the model and measures. Goal: within 15 % at each. The profile comes from other
shapes than those that are predicted: steps of 2, 4, 12, 20 and 48 sequences or of 16 to 384 prompt tokens, timed in an executor
without a server; and what the server's processes and the clients take of the cores for each token, counted while simulated
hardware is served. With `--calibrate` it stops there and writes the profile to a file.

The machine has to be quiet: a measurement during which other processes took more than 5 % of its cores is made again, and
after three such there is no verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import psutil

from core import plugins
from core.bench import load
from core.bench.figures import machine
from core.bench.server import served
from core.config import Options, parse_options, resolve
from core.platform import Executor, Plan
from core.simulate.simulation import Simulation
from core.simulate.trace import TraceRequest
from core.tokenization import load_tokenizer
from core.types import Admission, SamplingParams, StepPlan
from platforms.sim.profile import Efficiency, Profile

if TYPE_CHECKING:  # they load torch, which the CPU platform has something to say before
    from core.recording import RecordedModel
    from platforms.sim.cost import CostModel

GOAL = 0.15
STREAMS = (1, 8, 32)
REQUESTS_EACH = {1: 5, 8: 3, 32: 2}  # requests that a stream sends, one after the other
INPUT_WORDS, OUTPUT_TOKENS = 128, 64
RUNS = 3
ATTEMPTS, QUIET = 3, 0.05  # how often a disturbed measurement is made, and what others may take of the cores

#: A step: (tokens computed, length then) of each of its sequences.
Step = Sequence[tuple[int, int]]
STEPS: tuple[Step, ...] = (
    *([(1, length)] * seqs for seqs in (2, 4, 12, 20, 48) for length in (120, 400)),
    *([(count, count)] for count in (16, 48, 96, 256, 384)),
    [(1, 200)] * 12 + [(100, 100)],
)
REPEATS = 7

_PARAMS = SamplingParams(temperature=0.0, seed=0, max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS, ignore_eos=True)


# --- quiet ---------------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def quietly(measure: Callable[[], _T]) -> _T:
    """What `measure` gives while other processes leave the cores to it. Ends the program where they do not."""
    for _ in range(ATTEMPTS):
        began, everyone, own = time.perf_counter(), busy_seconds(), own_seconds()
        found = measure()
        others = (busy_seconds() - everyone) - (own_seconds() - own)
        share = others / ((time.perf_counter() - began) * psutil.cpu_count())
        if share <= QUIET:
            return found
        print(f"  other processes took {share:.0%} of the cores: measured again")
    raise SystemExit("the machine is not quiet; end what else runs on it, and start again")


def busy_seconds() -> float:
    """What all cores have computed, and what other machines on the same host took of them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def own_seconds() -> float:
    """What this process and those below it have computed since they started."""
    return cpu_seconds([psutil.Process(), *psutil.Process().children(recursive=True)])


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """What the processes have computed since they started."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


# --- steps of the executor -----------------------------------------------------------------------------------


@contextmanager
def cpu_executor() -> Iterator[tuple[Plan, Executor]]:
    """The CPU platform's executor with the demo model loaded."""
    options = Options(platform="cpu")
    platform = plugins.create(plugins.choose(options))
    plan = platform.plan(resolve(None, options))
    executor = platform.create_executor(plan)
    try:
        executor.load(lambda stage, fraction: None)
        executor.allocate_kv(executor.plan_memory().num_blocks)
        executor.warmup(lambda stage, fraction: None)
        yield plan, executor
    finally:
        executor.shutdown()
        platform.close()


class StepTimer:
    """Times steps of sequences of random tokens. Their earlier KV was never written; reading it takes as long."""

    def __init__(self, executor: Executor, block_size: int) -> None:
        self._executor = executor
        self._block_size = block_size
        self._random = np.random.default_rng(0)
        self._step = 0
        self._rows: list[int] = []

    def seconds(self, step: Step) -> float:
        """The second quickest of `REPEATS`: what disturbs makes slower, never quicker.

        A step that decodes only is repeated by the next one of the same sequences, as in an engine; another by one of
        new sequences.
        """
        decodes = all(count == 1 for count, _ in step)
        taken = []
        for repeat in range(REPEATS + 1):
            admitted = [] if decodes and repeat else self._admissions(step)
            taken.append(self._run(step, admitted))
        return sorted(taken[1:])[1]

    def _run(self, step: Step, admitted: list[Admission]) -> float:
        rows = list(range(len(step)))
        released = self._rows if admitted else []
        plan = StepPlan(self._step, released, admitted, rows, [count for count, _ in step], [], [])
        self._step, self._rows = self._step + 1, rows
        began = time.perf_counter()
        self._executor.collect(self._executor.submit(plan))
        return time.perf_counter() - began

    def _admissions(self, step: Step) -> list[Admission]:
        admitted, block = [], 1
        for row, (count, length) in enumerate(step):
            blocks = -(-(length + REPEATS) // self._block_size)
            admitted.append(
                Admission(
                    row=row,
                    request_id=str(row),
                    token_ids=self._random.integers(1000, 40_000, length).tolist(),
                    num_prompt_tokens=length,
                    num_computed_tokens=length - count,
                    block_ids=[list(range(block, block + blocks))],
                    params=_PARAMS,
                    choice_index=0,
                )
            )
            block += blocks
        return admitted


# --- a profile of this machine -------------------------------------------------------------------------------


def draft(dtype: Any, memory_bytes: int) -> Profile:
    """Figures to start the fit from."""
    fitted = f"fitted by benchmarks/sim_validation.py on {machine()}"
    names = [name for name in Profile.__struct_fields__ if name not in ("name", "source")]
    return Profile(
        name=f"CPU platform on {machine()}",
        peak_flops={dtype: 3e11},
        memory_bandwidth=1e10,
        memory_bytes=memory_bytes,
        max_devices=1,
        link_bandwidth=1.0,
        link_latency_s=0.0,
        launch_s=1e-5,
        host_step_s=0.0,
        host_sequence_s=1e-4,
        efficiency=Efficiency(flops=1.0, memory_bandwidth=1.0, link_bandwidth=1.0, memory=1.0),
        max_in_flight=1,
        overlap=0.5,
        source=dict.fromkeys(names, fitted),
    )


def fit(profile: Profile, model: RecordedModel, measured: Sequence[tuple[Step, float]]) -> Profile:
    """The profile whose predictions of `measured` are least wrong, by the mean of their logarithms' differences.

    A pattern search (Hooke & Jeeves 1961) over the logarithms of the figures, and over the overlap.
    """
    from platforms.sim.cost import CostModel

    (dtype,) = profile.peak_flops

    def made(point: Sequence[float]) -> Profile:
        flops, bandwidth, launch, sequence = (math.exp(value) for value in point[:4])
        return msgspec.structs.replace(
            profile,
            peak_flops={dtype: flops},
            memory_bandwidth=bandwidth,
            launch_s=launch,
            host_sequence_s=sequence,
            overlap=min(1.0, max(0.0, point[4])),
        )

    def wrong(point: Sequence[float]) -> float:
        cost = CostModel(model, made(point), 1)
        return statistics.fmean(abs(math.log(predicted(cost, step) / seconds)) for step, seconds in measured)

    start = [math.log(v) for v in (3e11, profile.memory_bandwidth, profile.launch_s, profile.host_sequence_s)]
    return made(pattern_search(wrong, [*start, profile.overlap]))


def predicted(cost: CostModel, step: Step) -> float:
    """Seconds that the cost model gives a step."""
    counts, lengths = (np.array(column, np.int64) for column in zip(*step, strict=True))
    return cost.step_seconds(counts, lengths)


def pattern_search(wrong: Callable[[Sequence[float]], float], point: list[float]) -> list[float]:
    """A local minimum: each coordinate moves as long as that helps, then the moves are halved."""
    best, move = wrong(point), 0.5
    while move > 0.005:
        before = best
        for index in range(len(point)):
            for sign in (1.0, -1.0):
                tried = [*point]
                tried[index] += sign * move
                if (value := wrong(tried)) < best:
                    best, point = value, tried
        if best == before:
            move /= 2
    return point


def host_seconds_per_token(directory: Path, profile: Profile) -> float:
    """Seconds that the server's processes and its clients compute for each token, on a device whose time is not theirs.

    The engine's own threads wait for each other, so a core that is taken from one of them is taken from the step.
    """
    free = {"peak_flops": {"bfloat16": 1e30, "float32": 1e30}, "memory_bandwidth": 1e30, "launch_s": 0.0}
    idle = {**free, "host_step_s": 0.05, "host_sequence_s": 0.0}
    file = write(directory / "idle.json", {**msgspec.to_builtins(profile), **idle})
    arguments = ["--platform", "sim", "--platform-opt", f"sim.profile={file}"]
    with served(arguments, timeout=120) as server:
        own = load.Workload(32, INPUT_WORDS, OUTPUT_TOKENS, concurrency=16, seed=99)
        before = own_seconds()
        figures = asyncio.run(load.run(server.url, None, own, lambda sample: None))
        tokens: int = figures["output_tokens"] + own.warmup * OUTPUT_TOKENS
        return (own_seconds() - before) / tokens


def write(file: Path, profile: Any) -> Path:
    """A profile as a file."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
    return file


def calibrate(directory: Path) -> Profile:
    """Measure, fit, and say how well."""
    with cpu_executor() as (plan, executor):
        timer = StepTimer(executor, plan.config.cache.block_size)
        measured = quietly(lambda: [(step, timer.seconds(step)) for step in STEPS])
    from core.recording import record_model
    from platforms.sim.cost import CostModel

    model = record_model(plan.config)
    profile = fit(draft(plan.config.model.dtype, psutil.virtual_memory().total), model, measured)
    cost = CostModel(model, profile, 1)
    for step, seconds in measured:
        shape = f"{len(step)} sequences, {sum(count for count, _ in step)} tokens, the last {step[-1][1]} long"
        print(f"  {shape:<48}{seconds * 1e3:8.1f} ms, fitted {predicted(cost, step) * 1e3:8.1f} ms")
    host = host_seconds_per_token(directory, profile)
    print(f"  a token takes the server's processes and the clients {host * 1e3:.2f} ms")
    return msgspec.structs.replace(profile, host_sequence_s=profile.host_sequence_s + host)


# --- prediction and measurement ------------------------------------------------------------------------------


def workload(streams: int, seed: int) -> load.Workload:
    """A closed loop of `streams`."""
    requests = streams * REQUESTS_EACH[streams]
    return load.Workload(requests, INPUT_WORDS, OUTPUT_TOKENS, concurrency=streams, seed=seed, warmup=1)


def predict(profile: Path, streams: int) -> float:
    """Output tokens a second: as many sequences run as there are streams, and the next one comes when one ends."""
    options = parse_options(
        {
            "platform": "sim",
            "platform_opt": (f"sim.profile={profile}", "sim.clock=virtual"),
            "max_num_seqs": streams,
            "max_num_batched_tokens": 512,  # the CPU platform's
            "kv_cache_memory": "1GiB",
            "max_queued_requests": 0,
        }
    )
    config = resolve(None, options)
    tokenizer = load_tokenizer(config.model.tokenizer_path)
    requests = []
    for line, text in enumerate(load.prompts(workload(streams, 0)), 1):
        ids = tokenizer.encode(text)
        requests.append(
            TraceRequest(arrival=0.0, prompt_tokens=len(ids), token_ids=ids, output_tokens=OUTPUT_TOKENS, line=line)
        )
    figures = Simulation(config, plugins.choose(options), requests).run(1, lambda tokens: None)
    tokens_per_s: float = figures["output_tokens_per_s"]
    return tokens_per_s


def serve(url: str, streams: int, seeds: Iterator[int]) -> float:
    """Output tokens a second that the clients of one run see; no run's prompts are another's, which would be cached."""
    figures = asyncio.run(load.run(url, None, workload(streams, next(seeds)), lambda sample: None))
    if figures["errors"]:
        raise RuntimeError(f"{figures['errors']} requests failed: {figures['first_error']}")
    tokens_per_s: float = figures["output_tokens_per_s"]
    return tokens_per_s


def measure() -> dict[int, list[float]]:
    """Output tokens a second of `RUNS` runs at each number of streams, in turn."""
    found: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    seeds = itertools.count(1)
    with served(["--platform", "cpu"], timeout=120) as server:
        for _ in range(RUNS):
            for streams in STREAMS:
                found[streams].append(quietly(partial(serve, server.url, streams, seeds)))
    return found


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibrate", metavar="OUT.json", type=Path, help="write a profile of this machine, and stop")
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as base:
        profile = calibrate(Path(base))
        file = write(given.calibrate or Path(base, "machine.json"), profile)
        if given.calibrate:
            print(f"written to {file}: use it with --platform-opt sim.profile={file}")
            return
        print(json.dumps({k: v for k, v in msgspec.to_builtins(profile).items() if k != "source"}))
        predictions = {streams: predict(file, streams) for streams in STREAMS}
    measured = measure()
    print(f"output tokens/s: {INPUT_WORDS}-word prompts, {OUTPUT_TOKENS} tokens each, median of {RUNS} runs (all)")
    for streams in STREAMS:
        median = statistics.median(measured[streams])
        off = predictions[streams] / median - 1
        runs = ", ".join(f"{value:.1f}" for value in measured[streams])
        verdict = "met" if abs(off) <= GOAL else "MISSED"
        print(
            f"{streams:>3} streams: predicted {predictions[streams]:7.1f}, measured {median:7.1f} ({runs}), "
            f"off by {off:+.1%}   goal {GOAL:.0%}: {verdict}"
        )


if __name__ == "__main__":
    main()
