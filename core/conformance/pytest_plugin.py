"""The kit as pytest sees it: its options, an item for each check, one line for each failure, and the report."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import pytest

from core.conformance import registry
from core.conformance.registry import LEVELS, Check, Level, Result
from core.conformance.report import encode
from core.conformance.reporting import make_report
from core.conformance.subject import Subject

_HERE = Path(__file__).parent
#: The one file that is collected: its place stands for all checks.
_FILE = _HERE / "registry.py"
#: Seconds to print what is left to be printed after a check that hangs.
_LAST_WORDS_S = 5.0
_SUBJECT: pytest.StashKey[Subject] = pytest.StashKey()
_RESULTS: pytest.StashKey[list[Result]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The kit's options."""
    group = parser.getgroup("core.conformance")
    group.addoption("--platform", dest="core_platform", metavar="NAME", help="the platform to test")
    group.addoption(
        "--platform-opt",
        dest="core_platform_opt",
        metavar="NAME.KEY=VALUE",
        action="append",
        default=[],
        help="an option of the platform (repeatable)",
    )
    group.addoption(
        "--level",
        dest="core_level",
        choices=LEVELS,
        default="serve",
        help="how far to go: each level includes those before it (default: serve)",
    )
    group.addoption("--report", dest="core_report", metavar="FILE", help="write a JSON support matrix here")


def pytest_configure(config: pytest.Config) -> None:
    """Make the subject. Raises UsageError without --platform."""
    if config.option.core_platform is None:
        raise pytest.UsageError(
            "--platform NAME is needed: which platform shall be tested? `core platforms` lists them"
        )
    names = sorted({entry.name for entry in entry_points(group="core.platforms")})
    if config.option.core_platform not in names:
        raise pytest.UsageError(
            f"--platform {config.option.core_platform}: no such platform; installed: {', '.join(names)}"
        )
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("-n: a device is tested by one process; leave it out")
    config.stash[_SUBJECT] = Subject(config.option.core_platform, tuple(config.option.core_platform_opt))
    config.stash[_RESULTS] = []


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close what the checks left open. Where one hangs, its thread must not keep this process from ending."""
    if _SUBJECT not in config.stash:
        return
    subject = config.stash[_SUBJECT]
    if subject.hung:
        last_words = threading.Timer(_LAST_WORDS_S, os._exit, (1,))
        last_words.daemon = True
        last_words.start()
    else:
        subject.close()


# --- collecting ----------------------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """The checks, wherever pytest's own options say that tests are."""
    return CheckFile.from_parent(parent, path=file_path, nodeid="core.conformance") if file_path == _FILE else None


class CheckFile(pytest.File):
    """All checks of the wanted level."""

    def collect(self) -> Iterator[CheckItem]:
        """One item a check."""
        for each in registry.checks_up_to(cast("Level", self.config.option.core_level)):
            yield CheckItem.from_parent(self, name=each.name, check=each)


class CheckItem(pytest.Item):
    """One check of the platform."""

    def __init__(self, *, check: Check, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.check = check
        self.result: Result | None = None  # once it has run
        self.keywords[check.level] = check.level

    def runtest(self) -> None:
        """Run it. Raises CheckFailed; skips what is not claimed."""
        result = self.result = registry.run(self.check, self.config.stash[_SUBJECT])
        self.config.stash[_RESULTS].append(result)
        if result.outcome == "unclaimed":
            pytest.skip(f"not claimed: {result.reason}")
        if result.outcome == "failed":
            raise CheckFailed(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What broke and why it matters, a line each; with -v the traceback of what no check foresaw."""
        if not isinstance(excinfo.value, CheckFailed):
            return super().repr_failure(excinfo, style)
        result = excinfo.value.result
        trace = f"\n{result.trace}" if result.trace and getattr(self.config.option, "verbose", 0) > 0 else ""
        return f"{result.reason}\nThis matters because: {self.check.why}.{trace}"

    def reportinfo(self) -> tuple[Path, None, str]:
        """Shown in the list of failures."""
        return self.path, None, f"{self.check.name} ({self.check.level})"


class CheckFailed(Exception):
    """A check's failure on its way through pytest. Its text is the line in the short summary."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.reason)
        self.result = result


# --- reporting -----------------------------------------------------------------------------------------------


def pytest_report_header(config: pytest.Config) -> str:
    """Which platform this is about."""
    return f"platform: {config.option.core_platform}, level {config.option.core_level}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report."""
    config = session.config
    if config.option.core_report is None:
        return
    results = config.stash[_RESULTS]
    report = make_report(config.stash[_SUBJECT], config.option.core_level, results)
    Path(config.invocation_params.dir, config.option.core_report).write_bytes(encode(report))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Level perf's figures, and where the report is."""
    for figure in config.stash[_SUBJECT].findings.figures:
        terminalreporter.write_line(f"{figure.name}: {figure.value:,.4g} {figure.unit}")
    if config.option.core_report is not None:
        terminalreporter.write_line(f"report: {config.option.core_report}")
