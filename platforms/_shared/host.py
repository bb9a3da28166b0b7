"""The machine as this process may use it: processors, their instruction sets, memory, and the cgroup's limits.

Reads /proc and /sys only (proc(5), and the kernel's cgroup-v1 and cgroup-v2 documents). `root` is where those are
mounted; tests give a directory of their own.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.platform import DeviceInfo

ROOT = Path("/")


# --- processors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processor:
    """The first processor's model, and what instructions it has (`flags` on x86, `Features` on ARM)."""

    model: str
    flags: frozenset[str]


def processor(root: Path = ROOT) -> Processor:
    """What /proc/cpuinfo says of the first processor; a field it lacks is the machine's architecture or empty."""
    fields: dict[str, str] = {}
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or fields.get("cpu") or platform.machine()
    return Processor(model, frozenset((fields.get("flags") or fields.get("Features") or "").split()))


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy: its affinity, or the cgroup's quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    for group in _cgroups("cpu", root):
        quota, period = _quota(group)
        if quota > 0 and period > 0:
            cores = min(cores, max(1, quota // period))
    return cores


def _quota(group: Path) -> tuple[int, int]:
    """Microseconds of processor time per period; 0 where there is no limit."""
    both = _text(group / "cpu.max").split()  # v2: "max 100000" or "200000 100000"
    if len(both) == 2:
        return _number(both[0]), _number(both[1])
    return _number(_text(group / "cpu.cfs_quota_us")), _number(_text(group / "cpu.cfs_period_us"))


# --- memory --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of memory this process may use in all, and those it could still take."""

    total: int
    free: int


def memory(root: Path = ROOT) -> Memory:
    """The machine's memory, or the least that a cgroup above this process leaves of it.

    What a cgroup holds as clean file cache counts as free: the kernel takes it back when memory is wanted.
    """
    meminfo = _sizes(root / "proc/meminfo", unit=1024)
    total, free = meminfo.get("MemTotal", 0), meminfo.get("MemAvailable", 0)
    for group in _cgroups("memory", root):
        limit = _number(_text(group / "memory.max")) or _number(_text(group / "memory.limit_in_bytes"))
        if not 0 < limit < total:
            continue  # none, or v1's way to say none: a number beyond all memory
        used = _number(_text(group / "memory.current")) or _number(_text(group / "memory.usage_in_bytes"))
        cached = _sizes(group / "memory.stat").get("inactive_file", 0)
        total, free = limit, min(free, max(0, limit - used + cached))
    return Memory(total, free)


def _sizes(file: Path, unit: int = 1) -> dict[str, int]:
    """Lines like `MemTotal:  16384 kB` or `inactive_file 4096`, in bytes."""
    pairs = (line.replace(":", " ").split() for line in _lines(file))
    return {pair[0]: _number(pair[1]) * unit for pair in pairs if len(pair) >= 2}


# --- both -----------------------------------------------------------------------------------------------------


def device_info() -> DeviceInfo:
    """The processor, with the cores and the memory this process may use."""
    return DeviceInfo(
        index=0, name=processor().model, memory_bytes=memory().total, details={"cores": str(usable_cores())}
    )


# --- files ---------------------------------------------------------------------------------------------------


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The directories of this process's cgroup and those above it, where its limits are written."""
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            top = mounted
        elif controller in controllers.split(","):
            top = mounted / controller
        else:
            continue
        own = top / path.lstrip("/")
        yield own
        # A container sees its own cgroup as the top, under whatever path the host calls it.
        yield from (parent for parent in own.parents if parent.is_relative_to(top))


def _number(text: str) -> int:
    """A count; 0 for `max`, -1 and whatever else stands for no limit."""
    return int(text) if text.isdigit() else 0


def _text(file: Path) -> str:
    return "".join(_lines(file)[:1]).strip()


def _lines(file: Path) -> list[str]:
    """The lines of a file; none where this kernel or cgroup version does not have it."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
