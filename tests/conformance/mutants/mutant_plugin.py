"""The plugin of the platform `mutant`: without a fault it keeps the contract."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from importlib import import_module

import msgspec

from core.hookspecs import hookimpl, parse_own_options
from core.platform import DeviceInfo, Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

_probes = itertools.count()


class Options(msgspec.Struct, frozen=True):
    """`--platform-opt mutant.KEY=VALUE`."""

    fault: str = ""  # a name in mutant_faults.FAULTS, or one of the probe's below
    buckets: bool = False  # run fixed step shapes only
    opaque: bool = False  # hand out handles that are no tensors
    few_features: bool = False  # declare little of sampling
    two_devices: bool = False


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="mutant", vendor="tests", version="0.1", api=(1, 0), experimental=True, options=Options)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    fault = parse_own_options("mutant", env.options, Options).fault
    if fault == "probe-prints":
        print("looking for devices")
    elif fault == "probe-sets-variable":
        os.environ["MUTANT_VISIBLE_DEVICES"] = "0"
    elif fault == "probe-leaves-file":
        tempfile.mkstemp(prefix="mutant")
    elif fault == "probe-leaves-thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif fault == "probe-imports-torch":
        import_module("torch")
    memory = 1 << 30
    if fault == "probe-changes-mind":
        memory += next(_probes)
    devices = (DeviceInfo(index=0, name="a device of the host's memory", memory_bytes=memory),)
    return ProbeResult(state="AVAILABLE", reason="runs anywhere", devices=devices)


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    options = parse_own_options("mutant", ctx.options, Options)
    platform: Platform = import_module("mutant_faults").make(options)
    return platform
