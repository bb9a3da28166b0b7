"""Percentiles, and figures as tables and JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Figures = dict[str, Any]

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks (Hyndman & Fan 1996, type 7). Raises ValueError on no values."""
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low, high = math.floor(rank), math.ceil(rank)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def spread(name: str, values: Sequence[float]) -> Figures:
    """`{name}_mean`, `{name}_p50` … of the values; nothing where there are none."""
    if not values:
        return {}
    percentiles = {f"{name}_p{percent}": percentile(values, percent) for percent in PERCENTILES}
    return {f"{name}_mean": statistics.fmean(values), **percentiles}


def machine() -> str:
    """Where this runs."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}, {python}"


def show(title: str, figures: Figures) -> None:
    """A table on standard output; what `spread` made is in seconds, and shown as milliseconds."""
    table = Table("figure", "value", box=None, header_style="bold")
    table.columns[1].justify = "right"
    for name, value in figures.items():
        if isinstance(value, float):
            seconds = name.rpartition("_")[2] in ("mean", *(f"p{percent}" for percent in PERCENTILES))
            table.add_row(name, f"{value * 1e3:,.2f} ms" if seconds else f"{value:,.2f}")
        elif value is not None:
            table.add_row(name, str(value))
    console = Console()
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def save(path: str, row: Figures) -> None:
    """Append the figures to a file as one line of JSON, times in seconds."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
