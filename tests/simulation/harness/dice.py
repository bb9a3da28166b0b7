"""From a seed to a scenario. Everything that is chance is drawn here, before anything runs, or by the world's generators.

Small pools, short steps and few rows, so that preemption, eviction and full queues are the rule and not the exception.
"""

from __future__ import annotations

import random
from typing import Any

from core.types import SamplingParams
from harness.scenario import EOS, MAX_MODEL_LEN, VOCAB, Arrival, FaultKind, Faults, Scenario, Shape, StepFault

#: Prompts begin like one of so many, so that prefixes are shared.
STEMS = 3
#: What goes wrong with steps, as often as it does.
KINDS: list[FaultKind] = ["submit", "collect", "allocate", "death", "death", "slow", "slow"]


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    shape = _shape(rng)
    frontends = rng.choice([1, 1, 2])
    arrivals = _arrivals(rng, frontends)
    return Scenario(
        seed=seed,
        shape=shape,
        frontends=frontends,
        arrivals=arrivals,
        faults=_faults(rng, frontends, arrivals),
        slowest_message=rng.choice([5e-5, 5e-5, 2e-3, 0.05]),
        kv_delay=rng.choice([1e-3, 0.02, 0.5]),
        kv_failures=rng.choice([0.0, 0.3, 1.0]),
        stats_every=rng.choice([None, 0.05]),
        drain_s=rng.choice([0.0, 0.05, 30.0, 30.0]),
    )


def _shape(rng: random.Random) -> Shape:
    block_size = rng.choice([1, 2, 4, 4, 8, 16])
    caching, chunked = rng.random() < 0.8, rng.random() < 0.8
    max_num_seqs = rng.randint(2, 8)
    return Shape(
        window=rng.choice([None, None, 3, 7, 16]),
        mixed=rng.random() < 0.6,
        block_size=block_size,
        num_blocks=1 + -(-MAX_MODEL_LEN // block_size) + rng.choice([0, 0, 1, 3, 32 // block_size, 64 // block_size]),
        max_num_seqs=max_num_seqs,
        budget=max(max_num_seqs, rng.choice([4, 8, 16, 32, MAX_MODEL_LEN] if chunked else [24, 32, MAX_MODEL_LEN])),
        policy=rng.choice(["fcfs", "priority"]),
        chunked=chunked,
        caching=caching,
        connector=caching and rng.random() < 0.4,
        max_queued=rng.choice([0, 0, 0, 0, 5]),
        max_in_flight=rng.choice([1, 2]),
    )


# --- clients -------------------------------------------------------------------------------------------------


def _arrivals(rng: random.Random, frontends: int) -> tuple[Arrival, ...]:
    """Storms: everybody comes, is in a hurry, leaves or aborts at the same moment."""
    stems = [_tokens(rng, rng.randint(8, 32)) for _ in range(STEMS)]
    first, spread = rng.choice([0.0, 0.26, 0.26, 0.26]), rng.choice([0.0, 0.05, 0.2, 0.6])
    hurry = rng.choice([0.02, 0.1]) if rng.random() < 0.1 else None
    storm = rng.choice([0.02, 0.05, 0.1]) if rng.random() < 0.1 else None
    departures = rng.choice([0.0, 0.0, 0.1, 0.3])
    return tuple(
        _arrival(
            rng, f"r{index}", stems, rng.randrange(frontends), first + spread * rng.random(), hurry, departures, storm
        )
        for index in range(rng.randint(3, 16))
    )


def _arrival(
    rng: random.Random,
    name: str,
    stems: list[tuple[int, ...]],
    frontend: int,
    at: float,
    hurry: float | None,
    departures: float,
    storm: float | None,
) -> Arrival:
    stem = rng.choice(stems)
    prompt = stem[: rng.randint(1, len(stem))] + _tokens(rng, rng.choice([0, 0, 1, 5]))
    params = _params(rng, MAX_MODEL_LEN - len(prompt))
    return Arrival(
        at=at,
        frontend=frontend,
        name=name,
        prompt=prompt,
        params=params,
        priority=rng.randint(0, 2),
        patience=hurry if hurry is not None else rng.choice([None] * 7 + [rng.uniform(0.001, 1.0)]),
        salt=rng.choice(["", "", "", "pepper"]),
        leaves=tuple(_moment(rng, departures) for _ in range(params.n)),
        aborts=tuple(storm if storm is not None else _moment(rng, departures) for _ in range(params.n)),
    )


def _tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCAB) for _ in range(count))


def _moment(rng: random.Random, probability: float) -> float | None:
    return rng.choice([0.0, 0.001, 0.02, 0.1, 0.3]) * rng.random() if rng.random() < probability else None


def _params(rng: random.Random, room: int) -> SamplingParams:
    max_tokens = min(room, rng.choice([1, 4, 10, 20, 30, 40]))
    options: dict[str, Any] = {}
    if rng.random() < 0.25:
        options["stop_token_ids"] = tuple(sorted({rng.randrange(VOCAB) for _ in range(2)} - {EOS}))
        options["min_tokens"] = min(max_tokens, rng.choice([0, 0, 3, 10]))
    return SamplingParams(
        n=rng.choice([1, 1, 1, 1, 2, 3]),
        seed=rng.getrandbits(32),
        temperature=rng.choice([0.0, 1.0]),
        max_tokens=max_tokens,
        ignore_eos=rng.random() < 0.5,
        **options,
    )


# --- bad luck ------------------------------------------------------------------------------------------------


def _faults(rng: random.Random, frontends: int, arrivals: tuple[Arrival, ...]) -> Faults:
    """One seed in four has none."""
    if rng.random() < 0.25:
        return Faults()
    steps = [_step_fault(rng) for _ in range(rng.choice([0, 1, 2, 6]))]
    deaths = [rng.uniform(0.2, 1.2) for _ in range(rng.choice([0, 0, 1, 2]))]
    deaths += [rng.uniform(60.0, 90.0) for _ in range(rng.random() < 0.05)]
    return Faults(
        steps=tuple({fault.step: fault for fault in steps}.values()),
        engine_deaths=tuple(sorted(deaths)),
        frontend_deaths=tuple(
            (rng.uniform(0.0, 0.8), rng.randrange(frontends)) for _ in range(rng.choice([0, 0, 0, 1]))
        ),
        failed_starts=rng.choice([()] * 12 + [(1,), (2,), (2, 3), (3, 4), tuple(range(2, 9))]),
        failed_frontends=rng.choice([()] * 20 + [(1,), (2, 3), tuple(range(1, 20))]),
        poison=rng.choice(arrivals).choice_id(0) if rng.random() < 0.1 else None,
        shutdowns=tuple(rng.uniform(0.1, 0.8) for _ in range(rng.choice([0] * 18 + [1, 2]))),
    )


def _step_fault(rng: random.Random) -> StepFault:
    return StepFault(
        step=rng.choice([rng.randint(1, 10), rng.randint(1, 100)]),
        kind=rng.choice(KINDS),
        fraction=rng.choice([0.0, 0.5, 0.999999, 1.0, 1.01]),
        seconds=rng.choice([0.02, 0.3, 3.0]),
    )
