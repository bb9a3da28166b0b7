"""Limits read from trees of files like those of /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from platforms._shared import host

MIB = 1 << 20


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {
    "proc/meminfo": "MemTotal:       8192 kB\nMemFree: 1 kB\nMemAvailable:   6144 kB\nHugePages_Total:       0\n"
}


def test_memory_without_cgroups(tmp_path: Path) -> None:
    assert host.memory(tree(tmp_path, MEMINFO)) == host.Memory(8 * MIB, 6 * MIB)


def test_memory_under_cgroup_v2(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/main\n",
        "sys/fs/cgroup/pod/main/memory.max": "max\n",
        "sys/fs/cgroup/pod/memory.max": f"{4 * MIB}\n",
        "sys/fs/cgroup/pod/memory.current": f"{3 * MIB}\n",
        "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {MIB}\nactive_file 7\n",
    }
    assert host.memory(tree(tmp_path, MEMINFO | files)) == host.Memory(4 * MIB, 2 * MIB)


def test_memory_under_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/\n",
        # In a container the host's path does not exist, and the limit stands at the top.
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * MIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{5 * MIB}\n",
    }
    assert host.memory(tree(tmp_path, MEMINFO | files)) == host.Memory(2 * MIB, 0)


def test_v1s_number_for_no_limit_is_none(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert host.memory(tree(tmp_path, MEMINFO | files)).total == 8 * MIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "1:cpu,cpuacct:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
    ],
)
def test_usable_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert host.usable_cores(tree(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("cpuinfo", "model", "flags"),
    [
        (
            "processor : 0\nmodel name : Fast 9000\nflags : sse avx512_bf16\n\nmodel name : Other\nflags : sse\n",
            "Fast 9000",
            {"sse", "avx512_bf16"},
        ),
        ("processor : 0\nFeatures : fp asimd bf16\n", os.uname().machine, {"fp", "asimd", "bf16"}),
        ("cpu : POWER9\n", "POWER9", set()),
    ],
)
def test_processor(tmp_path: Path, cpuinfo: str, model: str, flags: set[str]) -> None:
    assert host.processor(tree(tmp_path, {"proc/cpuinfo": cpuinfo})) == host.Processor(model, frozenset(flags))


def test_this_machine() -> None:
    memory = host.memory()
    assert 0 < memory.free <= memory.total
    assert 1 <= host.usable_cores() <= len(os.sched_getaffinity(0))
    assert host.processor().model
