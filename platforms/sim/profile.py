"""A device as figures: what it computes, moves and holds, and how much of that is reached. Torch-free.

A profile is a JSON file; `profiles/` has those of known devices, users add theirs by path. docs/simulation.md says how
to make one. Every figure names its source, since a prediction is worth as much as the figures behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from core.config import nearest
from core.errors import ConfigError
from core.types import DType

DIRECTORY = Path(__file__).parent / "profiles"
OPTION = "--platform-opt sim.profile"

Above = Annotated[float, Meta(gt=0)]
AtLeast = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]


class Efficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fraction of each peak that kernels reach, and of the memory that an engine may fill."""

    flops: Fraction
    memory_bandwidth: Fraction
    link_bandwidth: Fraction
    memory: Fraction


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device, and the link to its peers. Bytes, seconds, and per second.

    `link_bandwidth` counts one direction, over all of a device's links. `launch_s` is what each op takes beside its
    work. A step takes the host `host_step_s`, and `host_sequence_s` more for each of its sequences, in which the device
    stands idle: what overlaps with the device's work does not belong here. `max_in_flight` is the platform's of that
    name: with 2, the next step is planned while one runs. `overlap` is how much of an op's shorter side, arithmetic or
    memory traffic, goes on behind the longer one: all of it on accelerators, less on a host.
    """

    name: str
    peak_flops: Annotated[dict[DType, Above], Meta(min_length=1)]
    memory_bandwidth: Above
    memory_bytes: Annotated[int, Meta(ge=1)]
    max_devices: Annotated[int, Meta(ge=1)]  # that the link joins: the largest tensor parallel group
    link_bandwidth: Above
    link_latency_s: AtLeast
    launch_s: AtLeast
    host_step_s: AtLeast
    host_sequence_s: AtLeast
    efficiency: Efficiency
    source: dict[str, str]  # by field: where its figure comes from
    max_in_flight: Annotated[int, Meta(ge=1, le=2)] = 2
    overlap: Annotated[float, Meta(ge=0, le=1)] = 1.0

    @property
    def usable_memory(self) -> int:
        """Bytes that weights, activations and KV may take together."""
        return int(self.memory_bytes * self.efficiency.memory)

    def seconds(self, flops: float, size: float, dtype: DType) -> float:
        """As long as the slower of arithmetic and memory takes (the roofline of Williams, Waterman & Patterson 2009), and
        what of the other does not overlap with it.

        An element type without a peak of its own computes at the slowest that has one.
        """
        peak = self.peak_flops.get(dtype) or min(self.peak_flops.values())
        arithmetic = flops / (peak * self.efficiency.flops)
        traffic = size / (self.memory_bandwidth * self.efficiency.memory_bandwidth)
        return max(arithmetic, traffic) + (1.0 - self.overlap) * min(arithmetic, traffic)

    def all_reduce_seconds(self, size: float, devices: int) -> float:
        """A ring all-reduce of `size` bytes (Patarasuk & Yuan 2009): each device sends 2 (n - 1) / n of them."""
        sent = 2 * (devices - 1) / devices * size
        return sent / (self.link_bandwidth * self.efficiency.link_bandwidth) + self.link_latency_s


def shipped() -> list[str]:
    """Names of the profiles that come with the platform."""
    return sorted(file.stem for file in DIRECTORY.glob("*.json"))


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or any by the path of its file. Raises ConfigError naming the field and the fix."""
    path = DIRECTORY / f"{name}.json" if name in shipped() else Path(name).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = nearest(name, shipped())
        raise ConfigError(
            OPTION,
            f"{name!r} is no profile that is shipped ({', '.join(shipped())}), and no file: {error.strerror}{hint}",
        ) from error
    try:
        profile = msgspec.json.decode(content, type=Profile)
    except msgspec.DecodeError as error:  # also what does not fit
        raise ConfigError(OPTION, f"{path}: {error}") from error
    needed = {field.name for field in msgspec.structs.fields(Profile) if field.required} - {"name", "source"}
    unsourced = sorted(needed - profile.source.keys())
    if unsourced:
        raise ConfigError(OPTION, f"{path}: `source` does not say where {', '.join(unsourced)} comes from; add it")
    return profile
