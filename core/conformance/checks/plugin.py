"""Level boot: the plugin as every start-up of `core` meets it, whether its platform is chosen or not."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from core.conformance.failures import expect, expect_none
from core.conformance.inspection import MARK, PLACES, Seen
from core.conformance.limits import PATIENCE_S
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.platform import (
    AttentionBackend,
    DeviceInfo,
    KernelTable,
    MemoryBackend,
    Platform,
    PluginInfo,
    ProbeResult,
)
from core.types import SAMPLING_FEATURES, DType

#: Milliseconds that importing the entry-point module may take, beyond what the contract itself imports.
IMPORT_MS = 100.0
#: New processes that time it; the quickest counts, as a busy machine slows all but one or two.
_INSPECTIONS = 4


def _inspect(subject: Subject) -> Seen:
    """Look at the plugin from a process of its own, whose home, temporary and working directories are empty."""
    with tempfile.TemporaryDirectory() as base:
        folders = {place: str(Path(base, place)) for place in PLACES}
        for folder in folders.values():
            Path(folder).mkdir()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        found = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "core.conformance.inspection",
                subject.name,
                json.dumps(subject.chosen.options),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=folders["PWD"],
            env={**subject.environment, **folders, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    before, mark, line = found.stdout.rpartition(MARK)
    expect(mark, f"importing or probing it ended the process with status {found.returncode}: {found.stderr[-300:]}")
    seen = msgspec.json.decode(line, type=Seen)
    seen.import_output += before + found.stderr  # past Python's own streams, as native code prints
    return seen


def _inspections(subject: Subject) -> list[Seen]:
    return subject.kept("inspections", lambda: [_inspect(subject) for _ in range(_INSPECTIONS)])


@check("plugin.loads", "boot", "core takes a plugin only by its entry point, its hooks and its contract version")
def loads(subject: Subject) -> None:
    """The plugin is found, imported, speaks this contract, and its probe says AVAILABLE."""
    info = subject.found.loaded().info
    expect(isinstance(info, PluginInfo), f"plugin_info() gave {info!r}")
    expect(info.vendor and info.version, f"plugin_info() has vendor {info.vendor!r} and version {info.version!r}")
    expect(subject.chosen.reason, "its probe gives no reason; `core platforms` shows it to people")
    expect(isinstance(subject.platform, Platform), f"create_platform() gave {subject.platform!r}")


@check("plugin.import_clean", "boot", "every start-up imports every plugin, also where another platform is chosen")
def import_clean(subject: Subject) -> None:
    """Importing the entry-point module loads no torch, no other compiled library, and prints nothing."""
    seen = _inspections(subject)[0]
    expect(not seen.compiled, f"importing it loads compiled modules: {', '.join(seen.compiled[:4])}")
    expect(not seen.import_output.strip(), f"importing it prints {seen.import_output.strip()[:120]!r}")


@check("plugin.import_quick", "boot", "ten plugins that take a second each make `core --help` take ten")
def import_quick(subject: Subject) -> None:
    """The import takes less than 100 ms, beyond what the contract itself imports."""
    best = min(seen.import_ms for seen in _inspections(subject))
    expect(best < IMPORT_MS, f"importing it takes {best:.0f} ms, more than {IMPORT_MS:.0f}")


@check("plugin.probe_pure", "boot", "a probe runs in a process that goes on to start others, on every start-up")
def probe_pure(subject: Subject) -> None:
    """The probe prints nothing and leaves environment, files, threads and imports as they were."""
    seen = _inspections(subject)[0]
    expect(not seen.error, f"its probe raised {seen.error}")
    expect(not seen.probe_changes, f"its probe changes {', '.join(seen.probe_changes)}")
    expect(not seen.probe_output.strip(), f"its probe prints {seen.probe_output.strip()[:120]!r}")


@check("plugin.probe_idempotent", "boot", "what the parent chose must still be there when its children look")
def probe_idempotent(subject: Subject) -> None:
    """The probe says the same when it is asked again, and in new processes."""
    answers = [answer for seen in _inspections(subject) for answer in seen.probes]
    for answer in answers:
        expect(_stable(answer) == _stable(answers[0]), f"its probe said {answers[0]} and then {answer}")
    result = msgspec.convert(answers[0], ProbeResult)
    expect(result.state == "AVAILABLE", f"its probe says {result.state}: {result.reason}")


def _stable(answer: Any) -> Any:
    """An answer without what may change from moment to moment: the sizes in its reason."""
    return {key: value for key, value in answer.items() if key != "reason"}


# --- the platform object -------------------------------------------------------------------------------------


@check("api.signatures", "boot", "the core calls these methods by name and position, some of them only under load")
def signatures(subject: Subject) -> None:
    """Every overridden method of the contract takes what the contract passes."""
    expect_none([complaint for object_, base in _objects(subject.platform) for complaint in _unlike(object_, base)])


def _objects(platform: Platform) -> Iterator[tuple[object, type]]:
    yield platform, Platform
    yield platform.memory(), MemoryBackend
    yield platform.kernels(), KernelTable
    for backend in platform.attention():
        yield backend, AttentionBackend


def _unlike(object_: object, base: type) -> Iterator[str]:
    own = type(object_)
    if not isinstance(object_, base):
        yield f"{own.__name__} is no {base.__name__}"
        return
    for name, method in inspect.getmembers(base, inspect.isfunction):
        if not name.startswith("_") and (complaint := _mismatch(getattr(own, name), method)):
            yield f"{own.__name__}.{name}{inspect.signature(getattr(own, name))}: {complaint}"


def _mismatch(own: Callable[..., Any], base: Callable[..., Any]) -> str:
    """Why `own` cannot be called as `base` is; empty if it can."""
    wanted, given = inspect.signature(base).parameters, inspect.signature(own).parameters
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in wanted.values()):
        return ""  # a kernel: its own check calls it
    takes_any = {p.kind for p in given.values()}
    for name, parameter in wanted.items():
        if name not in given and inspect.Parameter.VAR_KEYWORD not in takes_any:
            return f"the contract has a parameter {name!r}"
        if name in given and parameter.default is not parameter.empty and given[name].default is parameter.empty:
            return f"{name!r} has a default in the contract"
    names = [name for name in given if name in wanted]
    if names != [name for name in wanted if name in given]:
        return f"its parameters are in the order {names}"
    extra = [
        name
        for name, p in given.items()
        if name not in wanted and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f"the contract passes no {', '.join(extra)}" if extra else ""


@check("api.stable_objects", "boot", "the core asks for these more than once and holds what it got before")
def stable_objects(subject: Subject) -> None:
    """memory() is one object, capabilities() and devices() are values that do not change."""
    platform = subject.platform
    expect(platform.memory() is platform.memory(), "memory() gives another object each time")
    expect(platform.capabilities() == platform.capabilities(), "capabilities() gives another answer each time")
    devices = list(platform.devices())
    expect(devices, "devices() is empty on a platform whose probe says AVAILABLE")
    expect(all(isinstance(device, DeviceInfo) for device in devices), f"devices() gave {devices}")
    expect([d.index for d in devices] == list(range(len(devices))), f"devices() are not in index order: {devices}")
    total = platform.memory().info().total
    for device in devices[:1]:
        expect(
            device.memory_bytes == 0 or abs(device.memory_bytes - total) <= total // 10,
            f"devices()[0] has {device.memory_bytes} bytes of memory, memory().info() {total}",
        )


@check(
    "api.capabilities", "boot", "whatever is not declared is refused before it can fail, so what is declared must be so"
)
def capabilities(subject: Subject) -> None:
    """Declared types, buckets and sampling features exist and fit together."""
    declared = subject.capabilities
    for name in ("dtypes", "kv_dtypes"):
        types = getattr(declared, name)
        expect(types, f"capabilities().{name} is empty: no model could run")
        expect(all(isinstance(each, DType) for each in types), f"capabilities().{name} has {types}")
        expect(len(set(types)) == len(types), f"capabilities().{name} has a type twice: {types}")
    unknown = set(declared.sampling) - set(SAMPLING_FEATURES)
    expect(not unknown, f"capabilities().sampling has {sorted(unknown)}, which are no core.types.SAMPLING_FEATURES")
    expect(declared.max_parallel_size >= 1, f"capabilities().max_parallel_size is {declared.max_parallel_size}")
    expect(
        declared.max_parallel_size <= len(subject.platform.devices()),
        f"capabilities().max_parallel_size is {declared.max_parallel_size} on {len(subject.platform.devices())} devices",
    )
    _check_buckets(subject)


def _check_buckets(subject: Subject) -> None:
    buckets = subject.capabilities.buckets
    if not buckets:
        return
    for bucket in buckets:
        expect(bucket.num_tokens >= bucket.num_seqs >= 1, f"bucket {bucket} holds no step of one token a sequence")
    expect(len(set(buckets)) == len(buckets), "capabilities().buckets has one twice")
    largest = max(b.num_tokens for b in buckets), max(b.num_seqs for b in buckets)
    expect(
        any((b.num_tokens, b.num_seqs) == largest for b in buckets),
        f"no bucket holds {largest[0]} tokens and {largest[1]} sequences, the largest of each that buckets have",
    )
