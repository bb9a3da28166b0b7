"""Platforms with one fault each: every one must be caught, by the check that is there for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.conformance import life, registry
from core.conformance.checks import executors
from core.conformance.subject import Subject

MUTANTS = Path(__file__).parent / "mutants"
sys.path.insert(0, str(MUTANTS))

from mutant_faults import Fault, all_faults  # noqa: E402

FAULTS = all_faults()
CHECKS = {check.name: check for check in registry.all_checks()}
LEAST = 36

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The mutants are found by their entry points, here and in child processes."""
    monkeypatch.syspath_prepend(str(MUTANTS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(check: str, platform: str, options: tuple[str, ...]) -> registry.Result:
    with Subject(platform, options) as subject:
        return registry.run(CHECKS[check], subject)


@pytest.mark.parametrize("buckets", [False, True], ids=["any shape", "buckets"])
@pytest.mark.parametrize("check", sorted({fault.caught_by for fault in FAULTS}))
def test_without_a_fault_the_check_passes(check: str, buckets: bool) -> None:
    result = run(check, "mutant", (f"mutant.buckets={str(buckets).lower()}",))
    needs_buckets = check == "programs.padding" and not buckets
    assert (result.outcome, result.trace) == ("unclaimed" if needs_buckets else "passed", ""), result.reason


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_named_check_catches_it(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "SHUTDOWN_S", 1.0)  # for the one that hangs
    options = (f"mutant.fault={fault.name}", f"mutant.buckets={str(fault.buckets).lower()}")
    result = run(fault.caught_by, fault.platform, options if fault.platform == "mutant" else ())
    assert result.outcome == "failed", f"{fault.what}: {fault.caught_by} {result.outcome}"
    assert "\n" not in result.reason and len(result.reason) < 400


def test_there_are_many_and_they_differ() -> None:
    assert len(FAULTS) >= LEAST
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)
    assert {fault.caught_by for fault in FAULTS} <= CHECKS.keys()
    assert life.BLOCKS > 8
