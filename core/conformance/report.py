"""The report that `--report out.json` writes: a support matrix for people, pages and other programs.

The schema is `Report`, described in docs/conformance.md. `schema` grows by one when a field changes its meaning or goes
away; new fields do not change it.
"""

from __future__ import annotations

from typing import Any

import msgspec

SCHEMA = 1


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the platform, as `Platform.devices` has it."""

    index: int
    name: str
    memory_bytes: int


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check. `reason`: what broke, or why the check does not apply; empty where it passed."""

    name: str
    level: str
    outcome: str  # passed, failed or unclaimed
    why: str
    reason: str
    seconds: float


class OpSupport(msgspec.Struct, frozen=True, kw_only=True):
    """One op in one element type. `worst_error` is relative (core.conformance.bounds), `bound` what it may be.

    `worst_error` is None where the op is not supported, or a kernel did not get as far as a result.
    """

    op: str
    dtype: str
    supported: bool
    reason: str = ""
    worst_error: float | None = None
    bound: float | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement of level perf, which is told and not judged."""

    name: str
    value: float
    unit: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one run on one platform."""

    schema: int
    platform: str
    distribution: str  # the plugin's, with its version
    vendor: str
    core: str  # version
    contract: tuple[int, int]  # core.platform.API_VERSION of this core
    plugin_contract: tuple[int, int]  # what the plugin was written for
    platform_options: tuple[str, ...]
    level: str
    passed: bool
    devices: tuple[Device, ...]
    checks: tuple[CheckResult, ...]
    ops: tuple[OpSupport, ...]
    attention: dict[str, bool | str]  # feature -> yes, or the reason why not
    capabilities: dict[str, Any]  # core.platform.Capabilities
    sampling: dict[str, bool]  # feature -> declared
    figures: tuple[Figure, ...]


def encode(report: Report) -> bytes:
    """JSON for people: indented, in the order of the fields."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
