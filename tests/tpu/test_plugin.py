"""What the TPU plugin says of a machine, and of its options, without torch_xla."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.platform import Bucket, ProbeEnv
from platforms.tpu import chips, plugin
from platforms.tpu.plugin import TpuOptions, parse_buckets


def _pci(root: Path, *devices: tuple[str, str]) -> Path:
    for index, (vendor, number) in enumerate(devices):
        directory = root / f"sys/bus/pci/devices/0000:00:{index:02}.0"
        directory.mkdir(parents=True)
        (directory / "vendor").write_text(f"{vendor}\n")
        (directory / "device").write_text(f"{number}\n")
    return root


def test_chips_are_told_by_their_pci_numbers(tmp_path: Path) -> None:
    root = _pci(tmp_path, ("0x8086", "0x0063"), ("0x1ae0", "0x0063"), ("0x1ae0", "0x006f"), ("0x1ae0", "0x0042"))
    assert chips.on_pci(root) == ["TPU v5e", "TPU v6e"]


def test_the_process_that_holds_a_chip_is_found(tmp_path: Path) -> None:
    held, other = tmp_path / "proc/41/fd", tmp_path / "proc/42/fd"
    for directory in (held, other):
        directory.mkdir(parents=True)
    (held / "3").symlink_to("/dev/accel0")
    (other / "3").symlink_to("/dev/null")
    assert chips.holder(tmp_path) == 41
    (held / "3").unlink()
    assert chips.holder(tmp_path) is None


def test_this_process_is_not_its_own_holder(tmp_path: Path) -> None:
    own = tmp_path / f"proc/{os.getpid()}/fd"
    own.mkdir(parents=True)
    (own / "3").symlink_to("/dev/vfio/0")
    assert chips.holder(tmp_path) is None


@pytest.mark.parametrize(
    ("on_bus", "installed", "state", "reason"),
    [
        ([], {"torch_xla", "libtpu"}, "ABSENT", "no TPU on this machine's PCI bus"),
        (["TPU v5e"], set(), "ABSENT", "pip install 'core[tpu]'"),
        (["TPU v5e"], {"torch_xla"}, "ABSENT", "libtpu"),
        (["TPU v5e"] * 4, {"torch_xla", "libtpu"}, "AVAILABLE", "4 x TPU v5e"),
    ],
)
def test_probe_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, on_bus: list[str], installed: set[str], state: str, reason: str
) -> None:
    monkeypatch.setattr(chips, "on_pci", lambda root: on_bus)
    monkeypatch.setattr(
        plugin, "find_spec", lambda name: importlib.util.find_spec("json") if name in installed else None
    )
    found = plugin.probe(ProbeEnv())
    assert found.state == state
    assert reason in found.reason
    assert len(found.devices) == (len(on_bus) if state == "AVAILABLE" else 0)


def test_the_cpu_device_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "find_spec", lambda name: importlib.util.find_spec("json"))
    found = plugin.probe(ProbeEnv(options={"device": "cpu"}))
    assert (found.state, found.score) == ("AVAILABLE", 0)


def test_buckets_are_every_shape_with_every_context() -> None:
    assert parse_buckets(TpuOptions(buckets="8x8 32x8", contexts="64 128")) == (
        Bucket(8, 8, 64), Bucket(8, 8, 128), Bucket(32, 8, 64), Bucket(32, 8, 128),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("buckets", "contexts", "message"),
    [
        ("8", "64", "tokens x sequences"),
        ("", "64", "tokens x sequences"),
        ("8x0", "64", "8x0 holds no step"),
        ("4x8", "64", "4x8 holds no step"),
        ("64x8 32x32", "64", "one must be 64x32"),
        ("8x8", "many", "is not like '512 2048'"),
        ("8x8", "0", "is not like '512 2048'"),
    ],
)
def test_wrong_buckets_are_refused_by_name(buckets: str, contexts: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_buckets(TpuOptions(buckets=buckets, contexts=contexts))
