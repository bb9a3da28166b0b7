"""Looks at a plugin from a new process: what importing its module and asking its probe cost and leave behind.

    python -m core.conformance.inspection NAME '{"key": "value"}'

prints one line of JSON, after whatever the plugin printed. Started by the checks; torch-free.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec
import pluggy

# What a plugin may count on: these are loaded before its own import is timed.
from core import hookspecs, platform

#: Where a probe could leave something: the folders that the check gave this process for itself.
PLACES = ("HOME", "TMPDIR", "PWD")
#: Begins the line that is ours.
MARK = "core-conformance:"


class Seen(msgspec.Struct, kw_only=True):
    """What was seen. `probes` are the answers as plain data, one for each time it was asked."""

    import_ms: float
    compiled: list[str]  # compiled modules that the import brought, beside Python's own and the contract's
    import_output: str
    probes: list[Any]
    probe_output: str
    probe_changes: list[str]
    error: str = ""


def main(name: str, options: dict[str, str]) -> None:
    """Import, probe twice, and print what was seen."""
    before, output = set(sys.modules), io.StringIO()
    (entry,) = entry_points(group="core.platforms", name=name)
    with redirect_stdout(output), redirect_stderr(output):
        started = time.perf_counter()
        module = importlib.import_module(entry.module)
        elapsed = time.perf_counter() - started
    seen = Seen(
        import_ms=1000 * elapsed,
        compiled=sorted(filter(_is_compiled, set(sys.modules) - before)),
        import_output=output.getvalue(),
        probes=[],
        probe_output="",
        probe_changes=[],
    )
    _probe(getattr(module, entry.attr) if entry.attr else module, options, seen)
    print(MARK + msgspec.json.encode(seen).decode())


def _probe(plugin: object, options: dict[str, str], seen: Seen) -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    output, before = io.StringIO(), _state()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            for _ in range(2):
                seen.probes.append(msgspec.to_builtins(manager.hook.probe(env=platform.ProbeEnv(options=options))))
        except Exception as error:  # whatever a stranger's probe raises
            seen.error = f"{type(error).__name__}: {error}"
    seen.probe_output = output.getvalue()
    seen.probe_changes = _changes(before, _state())


def _is_compiled(name: str) -> bool:
    file = getattr(sys.modules[name], "__file__", None) or ""
    return file.endswith((".so", ".pyd")) and name.partition(".")[0] not in (*sys.stdlib_module_names, "msgspec")


def _state() -> dict[str, Any]:
    """What a probe must leave as it found it."""
    return {
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "the files in its home, temporary and working directories": [
            sorted(map(str, Path(os.environ[place]).rglob("*"))) for place in PLACES
        ],
        "the running threads": (len(threading.enumerate()), len(os.listdir("/proc/self/task"))),
        "the open files": sorted(os.listdir("/proc/self/fd")),
        "the modules of torch": "torch" in sys.modules,
    }


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name, value in before.items() if after[name] != value]


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
