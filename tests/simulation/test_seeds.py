"""Whole servers in virtual time, one for each seed: see `harness`. `make simulate-faults` runs more of them."""

from __future__ import annotations

import pytest
from running import run_script
from simulate_faults import failures_in, report

#: What the fast tests run, in parts of less than a second.
PART, PARTS = 20, 10
#: What all tests run.
SEEDS = 2000


@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds(part: int) -> None:
    assert not [report(*failure) for failure in failures_in(range(part * PART, (part + 1) * PART))]


@pytest.mark.slow
def test_every_invariant_holds_in_many_seeds() -> None:
    """By the command, in processes of its own: a pool's helpers would stay with this one."""
    first = PART * PARTS
    outcome = run_script("--first", str(first), "--seeds", str(SEEDS - first))
    assert outcome.returncode == 0, outcome.stderr.decode()
    assert outcome.stdout == b"every invariant held in %d seeds\n" % (SEEDS - first)
