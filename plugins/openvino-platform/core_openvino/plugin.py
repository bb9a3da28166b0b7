"""The plugin's hooks. Imports neither torch nor OpenVINO: it runs in the process that chooses a platform."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated

import msgspec
from msgspec import Meta

from core.errors import ConfigError
from core.hookspecs import hookimpl, parse_own_options
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from core_openvino import __version__
from core_openvino.host import device_info, usable_cores

NAME = "openvino"


class OpenVinoOptions(msgspec.Struct, frozen=True):
    """`--platform-opt openvino.KEY=VALUE`."""

    device: Annotated[str, Meta(description="the OpenVINO device; CPU is the only one this plugin serves")] = "CPU"
    threads: Annotated[
        int | None, Meta(description="worker threads of OpenVINO and of attention; default: one a usable core")
    ] = None


@hookimpl
def plugin_info() -> PluginInfo:
    """Experimental, so that it never takes the place of the in-tree CPU platform unasked."""
    return PluginInfo(
        name=NAME, vendor="core", version=__version__, api=(1, 0), experimental=True, options=OpenVinoOptions
    )


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE where OpenVINO's library loads; ABSENT where it or torch is not installed; BROKEN where it does not."""
    check_options(parse_own_options(NAME, env.options, OpenVinoOptions))
    found = find_spec(NAME)
    if found is None or not found.submodule_search_locations:
        return ProbeResult(state="ABSENT", reason="OpenVINO is not installed: pip install openvino")
    if find_spec("torch") is None:
        return ProbeResult(state="ABSENT", reason="torch, whose tensors hold the KV cache, is not installed")
    broken = _load_error(list(found.submodule_search_locations))
    if broken:
        return ProbeResult(state="BROKEN", reason=f"{broken}; install it again: pip install --force-reinstall openvino")
    device = device_info()
    reason = f"OpenVINO {version(NAME)}, CPU device: {device.name}"
    return ProbeResult(state="AVAILABLE", reason=reason, devices=(device,))


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; OpenVINO and torch are imported here."""
    options = parse_own_options(NAME, ctx.options, OpenVinoOptions)
    check_options(options)
    _send_nothing()
    torch_may_thread = _wait_passively()
    created: Platform = import_module("core_openvino.platform").OpenVinoPlatform(
        options.threads or usable_cores(), torch_may_thread=torch_may_thread
    )
    return created


def check_options(options: OpenVinoOptions) -> None:
    """Raises ConfigError on what the schema lets through and this plugin, or this machine, does not."""
    if options.device != "CPU":
        raise ConfigError(
            f"--platform-opt {NAME}.device",
            f"{options.device!r} is not served: weights and KV cache are host memory that OpenVINO and torch share, "
            "which only its CPU device can, and nothing here was ever run on another. Leave it at CPU",
        )
    cores = usable_cores()
    if options.threads is not None and not 1 <= options.threads <= cores:
        raise ConfigError(
            f"--platform-opt {NAME}.threads", f"{options.threads} is not from 1 to the {cores} cores that are usable"
        )


def _load_error(package: list[str]) -> str:
    """Why OpenVINO's native module does not load, or nothing.

    The dynamic loader takes milliseconds for it and its libraries; importing the package would run a second of Python.
    """
    module = PathFinder.find_spec("_pyopenvino", package)
    if module is None or module.origin is None:
        return f"OpenVINO {version(NAME)} has no native module for Python {sys.version_info[0]}.{sys.version_info[1]}"
    try:
        ctypes.CDLL(module.origin)
    except OSError as error:
        return f"OpenVINO's library does not load: {error}"
    return ""


def _send_nothing() -> None:
    """Keep OpenVINO from reporting its use: importing it sends an event where openvino-telemetry, which its package
    depends on, is installed and the user has not opted out. A server's owner is asked first; without it OpenVINO works.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it fails


def _wait_passively() -> bool:
    """Let idle OpenMP threads sleep, and tell whether they will.

    OpenVINO's threads (TBB) and torch's (OpenMP) take turns on the same cores. By default an OpenMP thread that has
    nothing to do spins on its core for milliseconds, which is what OpenVINO's next operation then waits for. The
    variable is read when torch loads its OpenMP: where torch was imported before, only what was set by then counts.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
