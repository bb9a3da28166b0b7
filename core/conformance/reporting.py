"""From what the checks found to the report."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

import core
from core.conformance.registry import Result
from core.conformance.report import SCHEMA, CheckResult, Device, Report
from core.conformance.subject import Subject
from core.errors import CoreError
from core.platform import API_VERSION, Capabilities, DeviceInfo, PluginInfo
from core.types import SAMPLING_FEATURES


def make_report(subject: Subject, level: str, results: Sequence[Result]) -> Report:
    """The report of a run, whatever failed in it."""
    info, distribution = _plugin(subject)
    capabilities, devices = _platform(subject)
    return Report(
        schema=SCHEMA,
        platform=subject.name,
        distribution=distribution,
        vendor=info.vendor,
        core=core.__version__,
        contract=API_VERSION,
        plugin_contract=info.api,
        platform_options=subject.platform_opt,
        level=level,
        passed=bool(results) and all(result.outcome != "failed" for result in results),
        devices=tuple(Device(index=d.index, name=d.name, memory_bytes=d.memory_bytes) for d in devices),
        checks=tuple(map(_checked, results)),
        ops=tuple(subject.findings.ops),
        attention=dict(subject.findings.attention),
        capabilities={} if capabilities is None else msgspec.to_builtins(capabilities),
        sampling={feature: bool(capabilities) and feature in capabilities.sampling for feature in SAMPLING_FEATURES}
        if capabilities is not None
        else {},
        figures=tuple(subject.findings.figures),
    )


def _checked(result: Result) -> CheckResult:
    return CheckResult(
        name=result.check.name,
        level=result.check.level,
        outcome=result.outcome,
        why=result.check.why,
        reason=result.reason,
        seconds=round(result.seconds, 3),
    )


def _plugin(subject: Subject) -> tuple[PluginInfo, str]:
    """What the plugin says of itself; placeholders where it could not even be loaded."""
    try:
        found = subject.found
        return found.loaded().info, found.distribution
    except (CoreError, AssertionError):
        return PluginInfo(name=subject.name, vendor="", version="", api=(0, 0)), ""


def _platform(subject: Subject) -> tuple[Capabilities | None, Sequence[DeviceInfo]]:
    try:
        return subject.capabilities, list(subject.platform.devices())
    except Exception:  # a platform that cannot even say; plugin.loads has failed and says why
        return None, ()
