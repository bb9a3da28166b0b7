"""The AMD GPUs of this machine, by what the amdkfd driver shows in sysfs (kernel documentation, gpu/amdgpu)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from core.platform import DeviceInfo, ProbeResult

#: Instruction sets that the kernels are compiled for, and what has them.
TARGETS = {
    "gfx90a": "Instinct MI210, MI250",
    "gfx942": "Instinct MI300",
    "gfx1100": "Radeon RX 7900, PRO W7900",
}
#: ROCm's own variables that hide devices.
_HIDING = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def find(environ: Mapping[str, str], root: Path = Path("/")) -> ProbeResult:
    """What the driver shows."""
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    if not nodes.is_dir():
        return ProbeResult(state="ABSENT", reason="no AMD GPU: the amdgpu driver shows none in /sys/class/kfd")
    gpus = [gpu for path in sorted(nodes.iterdir(), key=_number) if (gpu := _gpu(path)) is not None]
    if not gpus:
        return ProbeResult(state="ABSENT", reason="the amdgpu driver runs and finds no GPU that computes")
    kfd = root / "dev/kfd"
    if not kfd.exists():
        reason = "the machine has AMD GPUs, and this container none: start it with --device /dev/kfd --device /dev/dri"
        return ProbeResult(state="ABSENT", reason=reason)
    if not os.access(kfd, os.R_OK | os.W_OK):
        reason = "/dev/kfd may not be opened: add this user to the groups render and video"
        return ProbeResult(state="BROKEN", reason=reason)
    for name in _HIDING:  # each numbers what the one before it left
        if name in environ:
            shown = environ[name].split(",")
            gpus = [gpus[int(number)] for number in shown if number.strip().isdigit() and int(number) < len(gpus)]
            if not gpus:
                return ProbeResult(state="ABSENT", reason=f"{name}={environ[name]} hides every GPU")
    return _judged(gpus)


def _judged(gpus: list[tuple[str, int]]) -> ProbeResult:
    devices, problems = [], []
    for index, (target, memory_bytes) in enumerate(gpus):
        if target not in TARGETS:
            problems.append(f"GPU {index}: the kernels are compiled for {', '.join(TARGETS)}, not for {target}")
        elif memory_bytes == 0:
            problems.append(f"GPU {index}: the driver shows no memory of its own")
        else:
            devices.append(
                DeviceInfo(index=index, name=TARGETS[target], memory_bytes=memory_bytes, details={"gfx": target})
            )
    if not devices:
        return ProbeResult(state="BROKEN", reason="; ".join(problems))
    names = ", ".join(dict.fromkeys(device.details["gfx"] for device in devices))
    return ProbeResult(
        state="AVAILABLE",
        reason="; ".join([f"{len(devices)} of {names}", *problems]),
        devices=tuple(devices),
        score=100,
    )


def _gpu(node: Path) -> tuple[str, int] | None:
    """The target and the bytes of memory of a topology node, or None where it is a processor's."""
    properties = _properties(node / "properties")
    version = properties.get("gfx_target_version", 0)
    if version == 0:
        return None
    banks = [_properties(bank) for bank in node.glob("mem_banks/*/properties")]
    # Heap types 1 and 2 of kfd_topology.h are frame buffers, which the host sees or does not.
    memory_bytes = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in (1, 2))
    # 90402 is major 9, minor 4, stepping 2; the last two are hexadecimal digits of the name.
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}", memory_bytes


def _properties(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # a node that this container may not read
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int:
    return int(path.name) if path.name.isdigit() else -1
