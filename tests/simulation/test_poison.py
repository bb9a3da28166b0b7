"""A request that no engine survives ends alone: the others get their answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness.dice import draw
from harness.scenario import Faults, Scenario
from harness.world import World

#: The parts of a second that the tests of a file may take; together as many seeds as it takes to meet every order.
PART, PARTS = 15, 4


def poisoned(seed: int) -> Scenario:
    """The seed's server with one frontend, whose only bad luck is its first visitor's first request."""
    scenario = draw(seed)
    first = scenario.arrivals[0]
    name = first.name if first.params.n == 1 else f"{first.name}.0"
    alone = tuple(replace(arrival, frontend=0) for arrival in scenario.arrivals)
    return replace(scenario, frontends=1, arrivals=alone, faults=Faults(poison=name))


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
