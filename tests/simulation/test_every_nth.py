"""The Nth allocation, submission or result fails, for every N that a workload has: nobody loses a token or a byte.

The engine that meets the failure ends with it and says so, another takes over, and every stream goes on to the answer
that it would have had; where the very first engine cannot start, the server ends and everybody is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from harness.device import CheckedExecutor
from harness.dice import draw
from harness.scenario import Faults, Scenario
from harness.trace import BadLuck
from harness.world import World

from core.cache.pool import BlockPool
from platforms.sim.memory import SimMemory

#: Where a failure can come from: a block of the cache, a byte of the device, a step on its way there or back.
SITES: dict[str, tuple[type, str]] = {
    "block": (BlockPool, "allocate"),
    "device memory": (SimMemory, "alloc"),
    "submit": (CheckedExecutor, "submit"),
    "collect": (CheckedExecutor, "collect"),
}


#: Seeds of workloads: short with windows and a connector; preempting with windows and shared prefixes, with a
#: connector, without prefix caching.
SMALL = 45
LARGE = (0, 46, 23)


class Nth:
    """Counts the calls of a site, and makes the Nth fail; with 0, none."""

    def __init__(self, site: str, nth: int) -> None:
        self._owner, self._name = SITES[site]
        self._nth = nth
        self.calls = 0

    @contextmanager
    def happens(self) -> Iterator[None]:
        original = getattr(self._owner, self._name)

        def call(owner: Any, *args: Any) -> Any:
            self.calls += args != (0,)  # no block is no allocation
            if self.calls == self._nth and args != (0,):
                raise BadLuck(f"{self._name} fails the {self._nth}th time")
            return original(owner, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._owner, self._name, call)
            yield


def workload(seed: int) -> Scenario:
    """The seed's server and people, whose only bad luck is one engine's death: starting again is part of the story."""
    return replace(draw(seed), faults=Faults(engine_deaths=(0.33,)))


def calls_of(scenario: Scenario, site: str) -> int:
    nth = Nth(site, 0)
    with nth.happens():
        World(scenario).run()
    return nth.calls


def fail_each(scenario: Scenario, site: str) -> int:
    """Run the scenario with the first call failing, then with the second …, each to its end. How many there were."""
    count = calls_of(scenario, site)
    for number in range(1, count + 1):
        nth = Nth(site, number)
        with nth.happens():
            World(scenario).run()
        assert nth.calls >= number
    return count


@pytest.mark.parametrize("site", SITES)
def test_the_nth_failure_is_survived(site: str) -> None:
    assert fail_each(workload(SMALL), site) > 10


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("seed", LARGE)
def test_the_nth_failure_is_survived_in_larger_workloads(seed: int, site: str) -> None:
    assert fail_each(workload(seed), site) >= 40
