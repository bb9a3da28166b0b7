"""The Intel GPUs of this machine, by what the xe and i915 drivers show in sysfs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from ctypes.util import find_library
from pathlib import Path

from core.platform import DeviceInfo, ProbeResult

_INTEL = "0x8086"
_DRIVERS = ("xe", "i915")


def find(
    environ: Mapping[str, str], root: Path = Path("/"), library: Callable[[str], str | None] = find_library
) -> ProbeResult:
    """What the drivers show; `library` finds the Level Zero loader, through which torch reaches them."""
    cards = [card for card in sorted((root / "sys/class/drm").glob("renderD*")) if _is_intel_gpu(card)]
    if not cards:
        return ProbeResult(state="ABSENT", reason="no Intel GPU: neither xe nor i915 shows one in /sys/class/drm")
    nodes = [root / "dev/dri" / card.name for card in cards]
    if not any(node.exists() for node in nodes):
        reason = "the machine has Intel GPUs, and this container none: start it with --device /dev/dri"
        return ProbeResult(state="ABSENT", reason=reason)
    if not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        reason = "/dev/dri/renderD* may not be opened: add this user to the group render"
        return ProbeResult(state="BROKEN", reason=reason)
    if library("ze_loader") is None:
        return ProbeResult(state="BROKEN", reason="no Level Zero: install Intel's compute runtime and libze1")
    if environ.get("ZE_AFFINITY_MASK", "all").strip() == "":
        return ProbeResult(state="ABSENT", reason=f"ZE_AFFINITY_MASK hides all {len(cards)} GPUs")
    devices = tuple(_info(card, index) for index, card in enumerate(cards))
    reason = f"{len(devices)} of {', '.join(dict.fromkeys(device.name for device in devices))}"
    return ProbeResult(state="AVAILABLE", reason=reason, devices=devices, score=100)


def _is_intel_gpu(card: Path) -> bool:
    driver = (card / "device/driver").resolve().name
    return _text(card / "device/vendor") == _INTEL and driver in _DRIVERS


def _info(card: Path, index: int) -> DeviceInfo:
    """Its memory is not in sysfs for every driver: the platform asks torch."""
    device = card / "device"
    return DeviceInfo(index=index, name=f"Intel GPU {_text(device / 'device')}", details={"node": card.name})


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # a device that this container may not read
        return ""
