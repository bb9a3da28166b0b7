"""`core platforms`: which platforms were found, in what state, and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.cli.options import describe_options
from core.plugins import Candidate, discover, probe_all

_COLOURS = {"AVAILABLE": "green", "ABSENT": "dim", "BROKEN": "red"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("platforms", help="show the hardware platforms, their state, and why")
    parser.add_argument("-v", "--verbose", action="store_true", help="show devices, versions and causes too")
    parser.add_argument("--json", action="store_true", help="print JSON, with all that -v shows")


def run(args: argparse.Namespace) -> int:
    """Print a row for each plugin. Returns 0 if a platform can be used without being named, else 1."""
    candidates = probe_all(discover(), lambda name: {})
    if args.json:
        print(json.dumps([_described(candidate) for candidate in candidates], indent=2))
    else:
        console = Console()
        console.print(_table(candidates))
        if args.verbose:
            for candidate in candidates:
                console.print(_details(candidate))
    return 0 if any(one.state == "AVAILABLE" and not one.experimental for one in candidates) else 1


def _table(candidates: list[Candidate]) -> Table:
    table = Table("platform", "state", "score", "why", box=None, header_style="bold")
    for candidate in candidates:
        score = str(candidate.result.score) if candidate.state == "AVAILABLE" else ""
        state = Text(candidate.state, style=_COLOURS[candidate.state])
        table.add_row(candidate.name, state, score, Text(candidate.result.reason))
    return table


def _details(candidate: Candidate) -> Text:
    described = _described(candidate)
    lines = [f"\n{candidate.name}: {described['distribution']}"]
    if candidate.found.plugin is not None:
        lines.append(f"  by {described['vendor']}, version {described['version']}, contract {described['api']}")
    for device in candidate.result.devices:
        lines.append(f"  {device.index}: {device.name}, {device.memory_bytes} bytes")
        lines += [f"     {name}: {value}" for name, value in device.details.items()]
    lines += [f"  --platform-opt {candidate.name}.{key}: {text}" for key, text in described.get("options", {}).items()]
    lines += [f"  caused by {cause}" for cause in described["causes"]]
    return Text("\n".join(lines))


def _described(candidate: Candidate) -> dict[str, Any]:
    plugin = candidate.found.plugin
    described: dict[str, Any] = {
        "name": candidate.name,
        "state": candidate.state,
        "reason": candidate.result.reason,
        "score": candidate.result.score,
        "distribution": candidate.found.distribution,
        "devices": [
            {"index": d.index, "name": d.name, "memory_bytes": d.memory_bytes, **d.details}
            for d in candidate.result.devices
        ],
        "causes": _causes(candidate.cause),
    }
    if plugin is not None:
        described |= {
            "vendor": plugin.info.vendor,
            "version": plugin.info.version,
            "api": ".".join(map(str, plugin.info.api)),
            "experimental": plugin.info.experimental,
            "replaces": list(plugin.info.replaces),
            "options": describe_options(plugin.info.options) if plugin.info.options else {},
        }
    return described


def _causes(error: BaseException | None) -> list[str]:
    """The chain of causes, outermost first."""
    chain = []
    while error is not None:
        chain.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    return chain
