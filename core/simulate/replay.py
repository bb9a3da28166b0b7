"""One engine, a trace, and a clock that jumps from one event to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.clock import Clock, VirtualClock
from core.engine.core import Engine
from core.errors import ConfigError, QueueFull
from core.simulate.prompts import PromptMaker
from core.simulate.trace import TraceRequest
from core.types import EngineRequest, EngineStats, RequestDelta, SamplingParams

Done = Callable[[int], None]  # called with each finished request's output tokens


@dataclass(slots=True)
class Sample:
    """What became of one request, in seconds of the clock."""

    arrival: float
    first: float = math.nan  # when its first token was there
    last: float = math.nan
    prompt_tokens: int = 0
    output_tokens: int = 0
    rejected: bool = False


@dataclass
class Outcome:
    """One engine's replay. `busy` are the seconds in which a step was running, `end` those until the last one ended."""

    samples: list[Sample] = field(default_factory=list)
    busy: float = 0.0
    end: float = 0.0
    kv_integral: float = 0.0  # fraction of the blocks in use, over `busy`
    kv_peak: float = 0.0
    stats: EngineStats = field(default_factory=EngineStats)


def virtual_clock(engine: Engine, platform: str) -> VirtualClock:
    """The engine's clock. Raises ConfigError where it is not a virtual one."""
    if not isinstance(engine.clock, VirtualClock):
        raise ConfigError("--platform", f"{platform!r} runs in real time; name one that has a virtual clock")
    return engine.clock


class Replay:
    """Feeds an engine the requests as their time comes, and notes what each one gets."""

    def __init__(self, engine: Engine, clock: Clock, prompts: PromptMaker, done: Done) -> None:
        self._engine = engine
        self._clock = clock
        self._prompts = prompts
        self._done = done
        self._open: dict[str, Sample] = {}
        self._params: dict[int, SamplingParams] = {}  # by output length
        self._outcome = Outcome()

    def run(self, requests: Sequence[TraceRequest]) -> Outcome:
        """Until every request has ended; `requests` are in order of arrival. The clock starts where it stands."""
        start = self._clock.now()
        following = iter(requests)
        upcoming = next(following, None)
        while upcoming is not None or self._engine.has_work():
            while upcoming is not None and start + upcoming.arrival <= self._clock.now():
                self._add(upcoming, start)
                upcoming = next(following, None)
            if self._engine.has_work():
                self._step()
            elif upcoming is not None:
                self._clock.sleep_until(start + upcoming.arrival)
        self._outcome.end = self._clock.now() - start
        self._outcome.stats = self._engine.stats()
        return self._outcome

    def _add(self, request: TraceRequest, start: float) -> None:
        sample = Sample(start + request.arrival, prompt_tokens=request.prompt_tokens)
        self._outcome.samples.append(sample)
        name = str(len(self._outcome.samples))
        length = request.output_tokens
        params = self._params.get(length)
        if params is None:
            params = SamplingParams(temperature=0.0, seed=0, max_tokens=length, min_tokens=length, ignore_eos=True)
            self._params[length] = params
        try:
            self._engine.add(
                EngineRequest(
                    request_id=name,
                    prompt_token_ids=self._prompts.tokens(request),
                    params=params,
                    priority=request.priority,
                    arrival_time=sample.arrival,
                )
            )
        except QueueFull:
            sample.rejected = True
        else:
            self._open[name] = sample

    def _step(self) -> None:
        before = self._clock.now()
        deltas = self._engine.step()
        now = self._clock.now()
        outcome, usage = self._outcome, self._engine.stats().kv_usage
        outcome.busy += now - before
        outcome.kv_integral += usage * (now - before)
        outcome.kv_peak = max(outcome.kv_peak, usage)
        self._take(deltas, now)

    def _take(self, deltas: Sequence[RequestDelta], now: float) -> None:
        samples = self._open
        for delta in deltas:
            sample = samples[delta.request_id]
            if not sample.output_tokens:
                sample.first = now
            sample.output_tokens += len(delta.token_ids)
            if delta.finish_reason is not None:
                sample.last = now
                del samples[delta.request_id]
                self._done(sample.output_tokens)
