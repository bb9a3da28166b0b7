"""From a scenario that violates an invariant to a smaller one that still does: fewer people, less bad luck."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.scenario import Scenario
from harness.trace import Violation
from harness.world import World


def violation_of(scenario: Scenario) -> Violation | None:
    """What goes wrong, if anything does."""
    try:
        World(scenario).run()
    except Violation as violation:
        return violation
    return None


def shrink(scenario: Scenario, invariant: str) -> Scenario:
    """Leave out whatever can be left out with `invariant` still violated, one thing after another until nothing can."""
    for smaller in _smaller(scenario):
        violation = violation_of(smaller)
        if violation is not None and violation.invariant == invariant:
            return shrink(smaller, invariant)
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    faults = scenario.faults
    for name in ("steps", "engine_deaths", "frontend_deaths", "failed_starts", "failed_frontends", "shutdowns"):
        luck = getattr(faults, name)
        for index in range(len(luck)):
            yield replace(scenario, faults=replace(faults, **{name: luck[:index] + luck[index + 1 :]}))
    if faults.poison is not None:
        yield replace(scenario, faults=replace(faults, poison=None))
    if scenario.stats_every is not None:
        yield replace(scenario, stats_every=None)
    for index in range(len(scenario.arrivals)):
        yield replace(scenario, arrivals=scenario.arrivals[:index] + scenario.arrivals[index + 1 :])
