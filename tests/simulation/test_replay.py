"""A seed says everything: the same story, to the byte, in any process; and a failure says how to see it again."""

from __future__ import annotations

import pytest
from harness.dice import draw
from harness.shrinking import shrink
from running import run_script
from simulate_faults import failures_in, main, report, trace

from core.cache.manager import CacheManager
from core.scheduler.scheduler import Scheduler


def story(hash_seed: str, first: int, count: int) -> bytes:
    outcome = run_script("--first", str(first), "--seeds", str(count), "--verbose", hash_seed=hash_seed)
    assert outcome.returncode == 0, outcome.stderr.decode()
    return outcome.stdout


@pytest.mark.slow
def test_one_seed_tells_one_story_in_any_process() -> None:
    first, second = story("1", 100, 60), story("2", 100, 60)
    assert len(first) > 100_000
    assert first == second


def test_one_seed_tells_one_story_in_one_process() -> None:
    for seed in range(5):
        assert trace(draw(seed)) == trace(draw(seed))
    assert trace(draw(0)) != trace(draw(1))


def test_a_failure_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Scheduler, "_copy_partial_block", lambda self, plan, parent, child, start: None)
    (failure,) = failures_in(range(100))
    seed, violation = failure
    assert violation.invariant == "reads-what-was-written"
    assert f"make simulate-faults SEED={seed} VERBOSE=1" in report(seed, violation)
    assert main(["--seed", str(seed), "--verbose"]) == 1
    out, err = capsys.readouterr()
    assert str(violation) in out and str(violation) in err


def test_a_failing_scenario_shrinks_to_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    register = CacheManager.register

    def hasty(self: CacheManager, blocks: object, token_ids: list[int], num_tokens: int) -> range:
        return register(self, blocks, token_ids, min(blocks.capacity, len(token_ids)))  # type: ignore[arg-type,attr-defined]

    monkeypatch.setattr(CacheManager, "register", hasty)
    ((seed, violation),) = failures_in(range(100))
    smallest = shrink(draw(seed), violation.invariant)
    assert len(smallest.arrivals) <= 2 and not smallest.faults.steps
