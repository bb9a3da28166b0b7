"""Profiles: the shipped ones are whole, and what is wrong with one's own is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sim_engine import exact_profile, write_profile

from core.errors import ConfigError
from core.types import DType
from platforms.sim.profile import load_profile, shipped


def test_those_that_are_shipped() -> None:
    assert shipped() == ["h100", "h200", "mi300x", "tpu-v5e", "trn2", "xeon"]


@pytest.mark.parametrize("name", shipped())
def test_each_is_whole_and_plausible(name: str) -> None:
    profile = load_profile(name)
    assert profile.source.keys() >= {"peak_flops", "efficiency", "host_step_s"}
    assert DType.BFLOAT16 in profile.peak_flops
    # Reading all of the memory once takes an accelerator tens of milliseconds, a host a second or two.
    assert 0.01 < profile.memory_bytes / profile.memory_bandwidth < 2.0
    assert profile.usable_memory < profile.memory_bytes
    assert "assumption" in profile.source["efficiency"]


def test_ones_own_by_path(tmp_path: Path) -> None:
    assert load_profile(str(write_profile(tmp_path / "mine.json", name="mine"))).name == "mine"


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"peak_flops": {}}, "peak_flops"),
        ({"peak_flops": {"float8": 1.0}}, "float8"),
        ({"memory_bandwidth": 0}, "memory_bandwidth"),
        ({"memory_bandwidth": "fast"}, "memory_bandwidth"),
        ({"efficiency": {"flops": 1.5, "memory_bandwidth": 1, "link_bandwidth": 1, "memory": 1}}, "efficiency.flops"),
        ({"bandwidth": 1.0}, "unknown field `bandwidth`"),
        ({"source": {"peak_flops": "a datasheet"}}, "does not say where .*memory_bandwidth"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, figures: dict[str, Any], message: str) -> None:
    file = write_profile(tmp_path / "mine.json", **figures)
    with pytest.raises(ConfigError, match=f"--platform-opt sim.profile: {file}: .*{message}"):
        load_profile(str(file))


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(ConfigError, match=r"mine\.json"):
        load_profile(str(tmp_path / "mine.json"))


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"'h10' .*h100, h200.*did you mean 'h100'"):
        load_profile("h10")


def test_the_roofline_is_the_slower_of_both() -> None:
    profile = load_profile("h100")
    compute, memory = profile.seconds(1e12, 0, DType.BFLOAT16), profile.seconds(0, 1e9, DType.BFLOAT16)
    assert compute == pytest.approx(1e12 / (9.89e14 * 0.65)) and memory == pytest.approx(1e9 / (3.35e12 * 0.8))
    assert profile.seconds(1e12, 1e9, DType.BFLOAT16) == max(compute, memory)
    assert profile.seconds(1e12, 0, DType.FLOAT32) > compute
    # One without a peak computes at the slowest that has one.
    assert profile.seconds(1e12, 0, DType.INT8) == profile.seconds(1e12, 0, DType.FLOAT32)


def test_what_does_not_overlap_takes_its_own_time() -> None:
    profile = exact_profile(peak_flops={"bfloat16": 1.0}, memory_bandwidth=1.0, overlap=0.25)
    assert profile.seconds(3, 2, DType.BFLOAT16) == profile.seconds(2, 3, DType.BFLOAT16) == pytest.approx(3 + 0.75 * 2)


def test_a_ring_sends_almost_twice_what_it_reduces() -> None:
    profile = load_profile("h100")
    fast = profile.link_bandwidth * profile.efficiency.link_bandwidth
    assert profile.all_reduce_seconds(1e9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / fast + profile.link_latency_s)
