"""What the plugins of `cpu`, `arm` and `power` share. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

import os
import platform
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import msgspec
from msgspec import Meta

from core.hookspecs import parse_own_options
from core.platform import PlatformContext, PluginInfo, ProbeResult
from platforms._shared import host

NATIVE = "platforms._shared._native"
#: Kinds of processor, as `platform.machine()` calls them, that have a platform of their own; `cpu` has all others.
OWN_PLATFORM = {"aarch64": "arm", "ppc64le": "power"}

_SPIN_COUNT = "10000"
#: Where torch comes from, if not from PyPI.
_TORCH = {"power": "PyPI has none for ppc64le, take a distribution's or build it"}


class HostOptions(msgspec.Struct, frozen=True):
    """`--platform-opt NAME.KEY=VALUE`."""

    threads: Annotated[
        int | None, Meta(description="worker threads of torch and the native kernels; default: one a usable core")
    ] = None


def host_plugin_info(name: str) -> PluginInfo:
    """The contract that these platforms were written for."""
    return PluginInfo(name=name, vendor="core", version="0.1.0", api=(1, 2), options=HostOptions)


def probe_host(name: str) -> ProbeResult:
    """What this machine is to the platform `name`.

    ABSENT on a processor that another platform drives, or without torch; BROKEN if the kernels do not load.
    """
    machine = platform.machine()
    driver = OWN_PLATFORM.get(machine, "cpu")
    if driver != name:
        return ProbeResult(state="ABSENT", reason=f"this machine's processor is {machine}: its platform is {driver!r}")
    if find_spec("torch") is None:
        source = _TORCH.get(name, f"pip install 'core[{name}]'")
        return ProbeResult(state="ABSENT", reason=f"torch is not installed: {source}")
    try:
        kernels = _kernels()
    except (ImportError, ValueError) as error:
        return ProbeResult(
            state="BROKEN",
            reason=f"its native kernels cannot be used: {error}. If they are missing or were built for another Python, "
            "build them again: pip install --force-reinstall --no-deps core, or in a clone pip install -e .",
        )
    found = host.device_info()
    device = msgspec.structs.replace(found, details={**found.details, "kernels": kernels})
    reason = f"{device.name}, {device.details['cores']} cores, kernels {kernels}"
    return ProbeResult(state="AVAILABLE", reason=reason, devices=(device,), score=0)


def _kernels() -> str:
    """The instruction-set tier in use, and why it is. Raises ImportError, and ValueError for a tier there is not."""
    native = import_module(NATIVE)
    tier, available = native.isa(), ", ".join(native.available_isas())
    return f"{tier} ({'CORE_CPU_ISA' if os.environ.get('CORE_CPU_ISA') else 'the best'} of {available})"


def host_options(name: str, ctx: PlatformContext) -> HostOptions:
    """The options of the platform `name`, which is about to be made: torch has not been imported yet."""
    _spin_briefly()
    return parse_own_options(name, ctx.options, HostOptions)


def _spin_briefly() -> None:
    """Let OpenMP's threads wait for each other awake for tens of microseconds, not for milliseconds.

    libgomp reads this when torch loads it. With its default a thread whose partner has lost its core to another
    process, the server's frontend for one, burns the core that the partner needs (docs/decisions/003-native-threads.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
