"""A request that no engine survives ends alone: the others get their answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness.dice import draw
from harness.scenario import Faults, Scenario
from harness.world import World

#: Seeds of one test, and tests.
PART, PARTS = 15, 4


def poisoned(seed: int) -> Scenario:
    """The seed's server with one frontend, whose only bad luck is its first visitor's first request."""
    scenario = draw(seed)
    alone = tuple(replace(arrival, frontend=0) for arrival in scenario.arrivals)
    return replace(scenario, frontends=1, arrivals=alone, faults=Faults(poison=scenario.arrivals[0].choice_id(0)))


@pytest.mark.parametrize("part", range(PARTS))
def test_nobody_else_ends_with_the_request_that_kills_engines(part: int) -> None:
    ends: list[str | None] = []
    for seed in range(part * PART, (part + 1) * PART):
        scenario = poisoned(seed)
        world = World(scenario)
        world.run()
        given_up = [reader.request.request_id for reader in world.readers if reader.end == "error"]
        assert given_up in ([], [scenario.faults.poison]), f"seed {seed}"
        ends += given_up
    assert ends
