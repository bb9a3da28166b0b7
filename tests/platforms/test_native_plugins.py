"""Which of `cpu`, `arm` and `power` drives a kind of processor. The machine is a pretended one: the kernels of ARM and POWER
run in `make test-cross`, and here those of this machine stand in for them."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch

import platforms.arm.plugin as arm
import platforms.cpu.plugin as cpu
import platforms.power.plugin as power
from core.errors import ConfigError
from core.platform import PlatformContext, ProbeEnv
from platforms._shared import _native
from platforms._shared.native import plugin as shared
from platforms._shared.native.platform import HostPlatform

PLUGINS = {"cpu": cpu, "arm": arm, "power": power}


def machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(shared.platform, "machine", lambda: name)


@pytest.mark.parametrize(
    ("processor", "driver"),
    [("x86_64", "cpu"), ("riscv64", "cpu"), ("ppc64", "cpu"), ("aarch64", "arm"), ("ppc64le", "power")],
)
def test_each_processor_has_one_platform_and_the_others_name_it(
    monkeypatch: pytest.MonkeyPatch, processor: str, driver: str
) -> None:
    machine(monkeypatch, processor)
    for name, plugin in PLUGINS.items():
        result = plugin.probe(ProbeEnv())
        if name == driver:
            assert (result.state, result.score) == ("AVAILABLE", 0)
        else:
            assert result.state == "ABSENT" and not result.devices
            assert processor in result.reason and result.reason.endswith(repr(driver))


@pytest.mark.parametrize(
    ("processor", "name", "line"),
    [
        ("x86_64", "cpu", "pip install 'core[cpu]'"),
        ("aarch64", "arm", "pip install 'core[arm]'"),
        ("ppc64le", "power", "PyPI has none for ppc64le"),
    ],
)
def test_without_torch_the_reason_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, processor: str, name: str, line: str
) -> None:
    machine(monkeypatch, processor)
    monkeypatch.setattr(shared, "find_spec", lambda module: None)
    result = PLUGINS[name].probe(ProbeEnv())
    assert result.state == "ABSENT" and line in result.reason


@pytest.mark.parametrize(("processor", "name"), [("aarch64", "arm"), ("ppc64le", "power")])
def test_without_its_kernels_it_is_broken(monkeypatch: pytest.MonkeyPatch, processor: str, name: str) -> None:
    machine(monkeypatch, processor)
    monkeypatch.setitem(sys.modules, shared.NATIVE, None)
    result = PLUGINS[name].probe(ProbeEnv())
    assert result.state == "BROKEN" and "pip install -e ." in result.reason


@pytest.mark.parametrize(("plugin", "name"), [(plugin, name) for name, plugin in PLUGINS.items()])
def test_each_makes_a_platform_of_its_own(monkeypatch: pytest.MonkeyPatch, plugin: ModuleType, name: str) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    threads = torch.get_num_threads(), _native.num_threads()
    try:
        created = plugin.create_platform(PlatformContext(options={"threads": "1"}))
        assert isinstance(created, HostPlatform) and type(created).__module__ == f"platforms.{name}.platform"
        assert _native.num_threads() == 1
        with pytest.raises(ConfigError, match=rf"--platform-opt {name}\.threads"):
            plugin.create_platform(PlatformContext(options={"threads": "0"}))
        with pytest.raises(ConfigError, match=rf"--platform-opt {name}\.thread"):
            plugin.create_platform(PlatformContext(options={"thread": "1"}))
    finally:
        torch.set_num_threads(threads[0])
        _native.set_num_threads(threads[1])


@pytest.mark.parametrize("name", PLUGINS)
def test_the_entry_module_imports_neither_torch_nor_numpy(name: str) -> None:
    code = f"import sys, platforms.{name}.plugin; print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
