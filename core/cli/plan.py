"""`core plan`: where a model's memory would go, and what the platform would decide, without loading it."""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core import plugins
from core.cli.options import add_engine_options, engine_options
from core.config import resolve
from core.platform import MemoryPlan, Plan

_WEIGHTS = {"none": "", "stored": "in the file's own blocks"}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("plan", help="show where a model's memory would go, without loading it")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, .gguf file or hub name; default: the demo"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan. Returns 1 where it does not fit. Raises ModelError, PlatformError, ConfigError."""
    options = engine_options(args)
    config = resolve(args.model, options, plugins.extensions(options))
    chosen = plugins.choose(options)
    # By name: planning needs torch, which nothing else here does.
    plan, memory = importlib.import_module("core.engine.core").plan_memory(config, chosen)
    described = describe(plan, memory, chosen.name)
    if args.json:
        print(json.dumps(described, indent=2))
    else:
        _print(described)
    return 0 if described["fits"] else 1


def describe(plan: Plan, memory: MemoryPlan, platform: str) -> dict[str, Any]:
    """The plan as plain data, sizes in bytes."""
    config = plan.config
    # The null block and a sequence's last, partly filled one are lost to sequences.
    longest_sequences = (memory.num_blocks - 1) // -(-config.scheduler.max_model_len // memory.block_size)
    return {
        "model": config.model.name,
        "architecture": config.model.architecture,
        "platform": platform,
        "dtype": str(config.model.dtype),
        "quantization": config.model.quantization,
        **memory.sizes(),
        "fits": memory.total <= memory.free and longest_sequences > 0,
        "kv_dtype": str(config.cache.dtype),
        "kv_blocks": memory.num_blocks,
        "kv_block_size": memory.block_size,
        "kv_tokens": (memory.num_blocks - 1) * memory.block_size,
        "max_model_len": config.scheduler.max_model_len,
        "longest_sequences": longest_sequences,
        "overrides": [{"option": o.option, "value": o.value, "reason": o.reason} for o in plan.overrides],
    }


def _advice(described: dict[str, Any]) -> str:
    if not described["longest_sequences"]:
        return "not one longest sequence fits the KV cache: raise --kv-cache-memory or lower --max-model-len"
    return (
        ""
        if described["fits"]
        else "it does not fit: lower --kv-cache-memory, or set a smaller --dtype or --quantization"
    )


def _print(described: dict[str, Any]) -> None:
    console = Console()
    title = f"{described['model']} ({described['architecture']}, {described['dtype']}) on {described['platform']}"
    console.print(Text(title, style="bold"))
    table = Table(box=None, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column()
    kv = (
        f"{described['kv_blocks']:,} blocks of {described['kv_block_size']} tokens in {described['kv_dtype']}: "
        f"{described['kv_tokens']:,} tokens, {described['longest_sequences']:,} sequences of {described['max_model_len']:,}"
    )
    weights = _WEIGHTS.get(described["quantization"], described["quantization"])
    notes = {"weights": weights, "kv_cache": kv, "free": _advice(described)}
    for name in ("weights", "activations", "inputs", "kv_cache", "total", "free"):
        label = {"kv_cache": "KV cache", "free": "free memory"}.get(name, name)
        table.add_row(label, f"{described[name] / 2**20:,.1f} MiB", Text(notes.get(name, "")))
    console.print(table)
    for override in described["overrides"]:
        console.print(Text(f"{override['option']} = {override['value']}: {override['reason']}"), soft_wrap=True)
