"""Every fault that a platform is given on purpose, and the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

import msgspec
from mutant_platform import MutantPlatform, TwoDevices
from mutant_plugin import Options

_Breaks = TypeVar("_Breaks", bound=Callable[[MutantPlatform], None])

#: Modules that register faults by `fault`.
MODULES = (
    "mutant_kernels",
    "mutant_logits",
    "mutant_attention",
    "mutant_memory",
    "mutant_quantization",
    "mutant_plans",
    "mutant_executors",
)


@dataclass(frozen=True)
class Fault:
    """One fault. `platform` is the plugin that has it; `breaks` is None where its module or probe itself does."""

    name: str
    what: str
    caught_by: str
    breaks: Callable[[MutantPlatform], None] | None = None
    kind: str = ""  # the option of the platform that it needs
    platform: str = "mutant"

    @property
    def options(self) -> tuple[str, ...]:
        """--platform-opt of the platform that has it."""
        if self.platform != "mutant":
            return ()
        return (f"mutant.fault={self.name}", *([f"mutant.{self.kind}=true"] if self.kind else []))


#: What is wrong with a plugin before there is a platform.
FAULTS: dict[str, Fault] = {
    each.name: each
    for each in (
        Fault("probe-prints", "the probe prints", "plugin.probe_pure"),
        Fault("probe-sets-variable", "the probe sets an environment variable", "plugin.probe_pure"),
        Fault("probe-leaves-file", "the probe leaves a temporary file", "plugin.probe_pure"),
        Fault("probe-leaves-thread", "the probe leaves a thread running", "plugin.probe_pure"),
        Fault("probe-imports-torch", "the probe imports torch", "plugin.probe_pure"),
        Fault("probe-changes-mind", "the probe says something else every time", "plugin.probe_idempotent"),
        Fault("import-torch", "the entry-point module imports torch", "plugin.import_clean", platform="mutant-torch"),
        Fault("import-prints", "the entry-point module prints", "plugin.import_clean", platform="mutant-loud"),
        Fault("import-slow", "the entry-point module takes 150 ms to import", "plugin.import_quick", platform="mutant-slow"),
    )
}  # fmt: skip


def fault(name: str, what: str, caught_by: str, *, kind: str = "") -> Callable[[_Breaks], _Breaks]:
    """Register a function that breaks a platform as the fault of that name."""

    def register(breaks: _Breaks) -> _Breaks:
        assert name not in FAULTS, name
        FAULTS[name] = Fault(name, what, caught_by, breaks, kind)
        return breaks

    return register


def all_faults() -> list[Fault]:
    """Every fault there is."""
    for module in MODULES:
        import_module(module)
    return list(FAULTS.values())


def make(options: Options) -> MutantPlatform:
    """A platform of that kind, with the named fault or with none."""
    all_faults()
    platform = (TwoDevices if options.two_devices else MutantPlatform)(buckets=options.buckets)
    if options.few_features:
        platform.declared = msgspec.structs.replace(platform.declared, sampling=("temperature", "seed"))
    if options.opaque:
        import_module("mutant_opaque").make_opaque(platform)
    breaks = FAULTS[options.fault].breaks if options.fault else None
    if breaks is not None:
        breaks(platform)
    return platform
