"""`core plugins`: what is installed beside the platforms, and what each plugin adds."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.plugins import Surveyed, survey


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "plugins", help="show the installed plugins that are not platforms, and what they add"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print a row for each plugin. Returns 1 if one is broken, else 0."""
    surveyed = survey()
    if args.json:
        print(json.dumps([_described(one) for one in surveyed], indent=2))
    else:
        Console().print(_table(surveyed) if surveyed else "no plugin is installed (entry-point group core.plugins)")
    return 1 if any(one.error for one in surveyed) else 0


def _table(surveyed: list[Surveyed]) -> Table:
    table = Table("plugin", "distribution", "state", "adds", box=None, header_style="bold")
    for one in map(_described, surveyed):
        broken = one["state"] == "BROKEN"
        adds = (
            one["reason"] if broken else "; ".join(f"{kind}: {', '.join(names)}" for kind, names in one["adds"].items())
        )
        state = Text(one["state"], style="red" if broken else "green")
        table.add_row(one["name"], one["distribution"], state, Text(adds))
    return table


def _described(one: Surveyed) -> dict[str, Any]:
    adds: dict[str, list[str]] = {}
    for extension in one.adds:
        adds.setdefault(extension.kind, []).append(extension.name)
    return {
        "name": one.found.name,
        "distribution": one.found.distribution,
        "state": "BROKEN" if one.error else "LOADED",
        "reason": str(one.error) if one.error else "",
        "adds": adds,
    }
