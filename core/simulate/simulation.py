"""A trace on one or more copies of an engine, and what it takes for its latencies to stay within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from core.bench.figures import Figures, percentile, spread
from core.config import Config
from core.engine.core import Engine
from core.platform import ChosenPlatform
from core.simulate.capacity import fewest
from core.simulate.prompts import PromptMaker
from core.simulate.replay import Done, Outcome, Replay, Sample, virtual_clock
from core.simulate.trace import TraceRequest, check_lengths

#: The percentile that an objective bounds.
PERCENTILE = 99
#: Requests that are tried alone, to see whether an objective can be met at all, and the seconds between them.
_ALONE, _APART = 256, 1e6


@dataclass(frozen=True)
class Objective:
    """Bounds in seconds on the 99th percentiles; None: no bound."""

    ttft: float | None = None
    tpot: float | None = None

    def meets(self, samples: Sequence[Sample]) -> bool:
        """Whether every request was served, and the latencies are within the bounds."""
        bounds = ((self.ttft, ttfts(samples)), (self.tpot, tpots(samples)))
        return not any(sample.rejected for sample in samples) and all(
            bound is None or not values or percentile(values, PERCENTILE) <= bound for bound, values in bounds
        )


class Simulation:
    """Replays `requests` on engines of `config`. Raises ConfigError for requests that the model cannot serve."""

    def __init__(self, config: Config, chosen: ChosenPlatform, requests: Sequence[TraceRequest]) -> None:
        check_lengths(requests, config.scheduler.max_model_len, config.model.vocab_size)
        self._config = config
        self._chosen = chosen
        self._requests = requests
        self._prompts = PromptMaker(config.model.vocab_size, config.options.seed)
        self._replayed: dict[int, list[Outcome]] = {}  # by replicas

    def run(self, replicas: int, done: Done) -> Figures:
        """The figures of `replicas` copies that take turns at the requests."""
        outcomes = self._outcomes(replicas, done)
        return {
            "replicas": replicas,
            "devices": replicas * self._config.parallel.world_size,
            **figures(outcomes),
        }

    def devices_for(self, objective: Objective, progress: Callable[[str], Done]) -> int | None:
        """The fewest copies that meet the objective, assuming that more never serve worse; None if no number does."""
        if not objective.meets(self._alone()):
            return None
        first = self._outcomes(1, progress("1 replica"))
        if objective.meets(_samples(first)):
            return 1
        arrivals = self._requests[-1].arrival - self._requests[0].arrival
        # One copy works as fast as it can: that many are needed to keep up with what comes.
        guess = round(first[0].busy / arrivals) if arrivals else len(self._requests)

        def meets(replicas: int) -> bool:
            return objective.meets(_samples(self._outcomes(replicas, progress(f"{replicas} replicas"))))

        return fewest(meets, guess, len(self._requests))

    def _outcomes(self, replicas: int, done: Done) -> list[Outcome]:
        if replicas not in self._replayed:
            parts = [self._requests[first::replicas] for first in range(replicas)]
            self._replayed[replicas] = [self._replay(part, done) for part in parts]
        return self._replayed[replicas]

    def _alone(self) -> list[Sample]:
        """Requests from all over the trace, each with the device to itself."""
        some = self._requests[:: -(-len(self._requests) // _ALONE)]
        apart = [msgspec.structs.replace(request, arrival=number * _APART) for number, request in enumerate(some)]
        return self._replay(apart, lambda tokens: None).samples

    def _replay(self, requests: Sequence[TraceRequest], done: Done) -> Outcome:
        engine = Engine.build(self._config, self._chosen, lambda stage, fraction: None, lambda plan, memory: None)
        try:
            return Replay(engine, virtual_clock(engine, self._chosen.name), self._prompts, done).run(requests)
        finally:
            engine.shutdown()


# --- figures -------------------------------------------------------------------------------------------------


def ttfts(samples: Sequence[Sample]) -> list[float]:
    """Seconds from arrival to the first token."""
    return [sample.first - sample.arrival for sample in samples if sample.output_tokens]


def tpots(samples: Sequence[Sample]) -> list[float]:
    """Seconds for each token after the first."""
    return [(s.last - s.first) / (s.output_tokens - 1) for s in samples if s.output_tokens > 1]


def figures(outcomes: Sequence[Outcome]) -> Figures:
    """Of all copies together; times in seconds. They arrive together, so the last one to end ends it all."""
    samples = _samples(outcomes)
    served = [sample for sample in samples if not sample.rejected]
    span = max(outcome.end for outcome in outcomes) or 1.0
    busy = sum(outcome.busy for outcome in outcomes)
    prompt, output = (sum(getattr(s, name) for s in served) for name in ("prompt_tokens", "output_tokens"))
    queries = sum(outcome.stats.prefix_queries for outcome in outcomes)
    hits = sum(outcome.stats.prefix_hits for outcome in outcomes)
    return {
        "requests": len(samples),
        "rejected": len(samples) - len(served),
        "simulated_s": span,
        "input_tokens": prompt,
        "output_tokens": output,
        "requests_per_s": len(served) / span,
        "output_tokens_per_s": output / span,
        "total_tokens_per_s": (prompt + output) / span,
        **spread("ttft", ttfts(samples)),
        **spread("tpot", tpots(samples)),
        **spread("e2e", [sample.last - sample.arrival for sample in served]),
        "kv_use_mean_percent": 100 * sum(outcome.kv_integral for outcome in outcomes) / (len(outcomes) * span),
        "kv_use_peak_percent": 100 * max(outcome.kv_peak for outcome in outcomes),
        "prefix_hit_percent": 100 * hits / queries if queries else 0.0,
        "preemptions": sum(outcome.stats.preemptions for outcome in outcomes),
        "device_busy_percent": 100 * busy / (len(outcomes) * span),
        "steps": sum(outcome.stats.steps for outcome in outcomes),
    }


def _samples(outcomes: Sequence[Outcome]) -> list[Sample]:
    return [sample for outcome in outcomes for sample in outcome.samples]
