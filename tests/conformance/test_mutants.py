"""Platforms with one fault each: every one must be caught, by the check that is there for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.conformance import registry
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


@pytest.mark.parametrize("kind", ["", "buckets"])
@pytest.mark.parametrize("check", sorted({fault.caught_by for fault in FAULTS} - {"parallel.parity"}))
def test_without_a_fault_the_check_passes(check: str, kind: str) -> None:
    result = run(check, "mutant", (f"mutant.{kind}=true",) if kind else ())
    expected = "unclaimed" if check == "programs.padding" and not kind else "passed"
    assert (result.outcome, result.trace) == (expected, ""), result.reason


@pytest.mark.parametrize(
    ("check", "kind", "outcome"),
    [
        ("parallel.parity", "two_devices", "passed"),
        ("parallel.refused", "two_devices", "passed"),
        ("parallel.parity", "", "unclaimed"),
        ("sampling.undeclared", "few_features", "passed"),
        ("serving.refusals", "few_features", "passed"),
        ("sampling.top_k", "few_features", "unclaimed"),
        ("sampling.min_tokens", "few_features", "unclaimed"),
        ("sampling.temperature", "few_features", "passed"),
        ("engine.deterministic", "few_features", "passed"),
        ("attention.views", "opaque", "unclaimed"),
    ],
)
def test_a_check_is_about_what_is_declared(check: str, kind: str, outcome: str) -> None:
    result = run(check, "mutant", (f"mutant.{kind}=true",) if kind else ())
    assert (result.outcome, result.trace) == (outcome, ""), result.reason


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_named_check_catches_it(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "SHUTDOWN_S", 1.0)  # for the one that hangs
    result = run(fault.caught_by, fault.platform, fault.options)
    assert result.outcome == "failed", f"{fault.what}: {fault.caught_by} {result.outcome}"
    assert "\n" not in result.reason and len(result.reason) < 400


def test_there_are_many_and_they_differ() -> None:
    assert len(FAULTS) >= LEAST
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)
    assert {fault.caught_by for fault in FAULTS} <= CHECKS.keys()
