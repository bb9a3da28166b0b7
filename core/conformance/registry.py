"""What a check is, how checks register, and what running one gives."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.conformance.checks import MODULES
from core.conformance.failures import Broken, NotClaimed
from core.conformance.limits import Hung, Stage, within

if TYPE_CHECKING:
    from core.conformance.subject import Subject

Level = Literal["boot", "ops", "serve", "perf"]
#: In order: each includes those before it.
LEVELS: tuple[Level, ...] = ("boot", "ops", "serve", "perf")

Outcome = Literal["passed", "failed", "unclaimed"]


@dataclass(frozen=True)
class Check:
    """One point of the contract. `why` completes the sentence `this matters because …`."""

    name: str
    level: Level
    why: str
    run: Callable[[Subject], None]


@dataclass(frozen=True)
class Result:
    """What became of a check. `reason` is one line: what broke, or why it was not claimed."""

    check: Check
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    trace: str = ""  # of an exception that no check foresaw


_CHECKS: dict[str, Check] = {}


def check(name: str, level: Level, why: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function as the check of that name."""

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        if name in _CHECKS:
            raise ValueError(f"two checks are called {name!r}")
        _CHECKS[name] = Check(name, level, why, function)
        return function

    return register


def all_checks() -> list[Check]:
    """Every check, by level, in the order of the modules."""
    for module in MODULES:
        importlib.import_module(module)
    return sorted(_CHECKS.values(), key=lambda each: LEVELS.index(each.level))


def checks_up_to(level: Level) -> list[Check]:
    """The checks of a level and those before it."""
    wanted = LEVELS[: LEVELS.index(level) + 1]
    return [each for each in all_checks() if each.level in wanted]


#: Seconds for one check. The longest take some ten on a slow platform.
CHECK_S = 600.0

#: The check without which no other can run.
FIRST = "plugin.loads"


def run(each: Check, subject: Subject) -> Result:
    """Run one check. Whatever it raises becomes its result; only the user's own interrupt passes.

    Where there is no platform, FIRST says so, and no other check repeats it. After one that hangs none is run: its
    thread goes on, and may hold anything.
    """
    if subject.has_failed(FIRST):
        return Result(each, "failed", f"not run, as {FIRST} failed")
    if subject.hung:
        return Result(each, "failed", f"not run, as {subject.hung} hangs")
    result = _run(each, subject)
    subject.note(each.name, result.outcome)
    return result


def _run(each: Check, subject: Subject) -> Result:
    started = time.perf_counter()
    outcome: Outcome = "passed"
    reason, trace = "", ""
    try:
        within(lambda stage: _examine(each, subject, stage), CHECK_S)
    except Hung as hung:
        outcome, reason, subject.hung = "failed", str(hung), each.name
    except NotClaimed as claim:
        outcome, reason = "unclaimed", str(claim)
    except Broken as broken:
        outcome, reason = "failed", str(broken)
    except (Exception, SystemExit) as error:
        outcome, reason, trace = "failed", _where(error), traceback.format_exc()
    return Result(each, outcome, " ".join(reason.split()), time.perf_counter() - started, trace)


def _examine(each: Check, subject: Subject, stage: Stage) -> None:
    stage(each.name)
    try:
        each.run(subject)
    finally:
        subject.tidy()


def _where(error: BaseException) -> str:
    """An exception that no check foresaw, with the place that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} from {frame.filename}:{frame.lineno} ({frame.name}): {error}"
