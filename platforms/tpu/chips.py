"""TPU chips as the kernel shows them, without a client."""

from __future__ import annotations

import os
from pathlib import Path

_GOOGLE = "0x1ae0"
#: PCI device numbers by generation, as JAX and torch_xla tell them apart.
_CHIPS = {
    "0x0027": "TPU v3",
    "0x005e": "TPU v4",
    "0x0062": "TPU v5p",
    "0x0063": "TPU v5e",
    "0x006f": "TPU v6e",
    "0x0076": "TPU7x",
}


def on_pci(root: Path) -> list[str]:
    """The generation of each chip on the PCI bus, in the bus's order; `root` is where /sys is mounted."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            vendor, number = ((device / name).read_text().strip() for name in ("vendor", "device"))
        except OSError:
            continue  # gone meanwhile
        if vendor == _GOOGLE and number in _CHIPS:
            found.append(_CHIPS[number])
    return found


def holder(root: Path) -> int | None:
    """The process that has a chip open, if this one may see it."""
    for process in (root / "proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            opened = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue  # another user's, or gone
        if any(path.startswith(("/dev/accel", "/dev/vfio/")) for path in opened):
            return int(process.name)
    return None
