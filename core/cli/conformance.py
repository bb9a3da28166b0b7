"""`core conformance`: hold a platform against the contract, and show what it keeps of it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.conformance.registry import LEVELS
from core.errors import ConfigError

_NEEDED = ("pytest", "safetensors")
_COLOURS = {"passed": "green", "failed": "red", "unclaimed": "dim"}
_COLUMNS = ("check", "level", "result", "s", "why")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("conformance", help="hold a platform against the contract")
    parser.add_argument("platform", metavar="PLATFORM", help="its name, as `core platforms` shows it")
    parser.add_argument(
        "--level", choices=LEVELS, default="serve", help="how far to go; each includes those before it (default: serve)"
    )
    parser.add_argument("--report", metavar="FILE", help="write a JSON support matrix here")
    parser.add_argument(
        "--platform-opt",
        metavar="NAME.KEY=VALUE",
        action="append",
        default=[],
        help="an option of the platform (repeatable)",
    )
    parser.add_argument(
        "-k", dest="expression", metavar="EXPRESSION", help="only checks whose name matches, as pytest has it"
    )


def run(args: argparse.Namespace) -> int:
    """Run the kit and print a row for each check. Returns 0 if none failed, else 1. Raises ConfigError."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            "core conformance", f"it needs {' and '.join(missing)}, not installed here: pip install 'core[conformance]'"
        )
    # A copy of standard output: pytest keeps the original for what the checks print.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as output:
        rows = Rows(Console(file=output))
        # By name: the kit needs pytest and torch, which nothing else here does.
        status = importlib.import_module("pytest").main(_arguments(args), plugins=[rows])
        return rows.close(int(status), args.report)


def _arguments(args: argparse.Namespace) -> list[str]:
    """pytest's own: nothing of a project that happens to be in this folder is read, and nothing is written into it."""
    own = ["--pyargs", "core.conformance", "--platform", args.platform, "--level", args.level]
    own += [text for pair in args.platform_opt for text in ("--platform-opt", pair)]
    own += ["--report", str(Path(args.report).absolute())] if args.report else []
    own += ["-k", args.expression] if args.expression else []
    quiet = ["-p", "no:terminal", "-p", "no:cacheprovider", "--assert=plain", "--noconftest"]
    return [*own, *quiet, "-c", "/dev/null", "--rootdir", "/", "-W", "ignore"]


class Rows:
    """A pytest plugin that prints each result as it comes, and counts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counts = dict.fromkeys(_COLOURS, 0)
        self._width = 0

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Know how wide the first column is."""
        self._width = max((len(item.name) for item in items), default=0)
        self._console.print(self._row(*_COLUMNS, style="bold"))

    def pytest_runtest_teardown(self, item: Any) -> None:
        """Print a check's result."""
        result = item.result
        self._counts[result.outcome] += 1
        style = _COLOURS[result.outcome]
        reason = f"{result.reason}. This matters because {result.check.why}." if style == "red" else result.reason
        self._console.print(
            self._row(
                result.check.name, result.check.level, result.outcome, f"{result.seconds:.1f}", reason, style=style
            )
        )

    def _row(self, check: str, level: str, outcome: str, seconds: str, reason: str, *, style: str) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        for width in (self._width, 5, 9, 5):
            table.add_column(width=width)
        table.add_column(overflow="fold")
        table.add_row(check, level, Text(outcome, style=style), seconds, Text(reason))
        return table

    def close(self, status: int, report: str | None) -> int:
        """Print the sum. 0 if checks ran and none failed, else 1."""
        shown = ", ".join(f"{count} {name}" for name, count in self._counts.items())
        self._console.print(Text(f"\n{shown}" if any(self._counts.values()) else "no check ran", style="bold"))
        if report:
            self._console.print(Text(f"report: {report}"))
        return 0 if status == 0 and not self._counts["failed"] else 1
