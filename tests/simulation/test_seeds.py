"""Whole servers in virtual time, one for each seed: see `harness`. `make simulate-faults` runs more of them."""

from __future__ import annotations

import pytest
from simulate_faults import failures_in, report, simulate

#: What the fast tests run, in parts of less than a second.
PART, PARTS = 20, 10
#: What all tests run.
SEEDS = 2000


@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds(part: int) -> None:
    assert not [report(*failure) for failure in failures_in(range(part * PART, (part + 1) * PART))]


@pytest.mark.slow
def test_every_invariant_holds_in_many_seeds() -> None:
    for _, failures in simulate(PART * PARTS, SEEDS - PART * PARTS):
        assert not [report(*failure) for failure in failures]
