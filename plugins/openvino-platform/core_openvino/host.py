"""The machine as this process may use it. Reads /proc and /sys only."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from core.platform import DeviceInfo, MemoryInfo

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores in this process's affinity, or the cgroup's quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _text(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def memory() -> MemoryInfo:
    """The machine's memory, within the limit of the cgroup that is mounted here (a container sees its own)."""
    sizes = {line.split(":")[0]: line.split()[1] for line in _text(Path("/proc/meminfo")).splitlines()}
    total, free = (int(sizes[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = _text(_CGROUP / "memory.max"), _text(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total, free = int(limit), max(0, min(free, int(limit) - int(used)))
    return MemoryInfo(total, free)


def device_info() -> DeviceInfo:
    """The processor, with the memory and the cores this process may use."""
    lines = (line.partition(":") for line in _text(Path("/proc/cpuinfo")).splitlines())
    models = (value.strip() for name, _, value in lines if name.strip() == "model name")
    return DeviceInfo(
        index=0,
        name=next(models, platform.machine()),
        memory_bytes=memory().total,
        details={"cores": str(usable_cores())},
    )


def _text(file: Path) -> str:
    """The contents of a file; empty where this kernel or container does not have it."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
