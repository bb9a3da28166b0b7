"""What the probes of the GPU platforms say of machines: each thing that can be wrong has a sentence of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from fake_nvml import GIB, Gpu, Nvml, NVMLError, NVMLError_LibraryNotFound

from core.errors import ConfigError
from core.platform import DeviceInfo, PlatformContext, ProbeEnv, ProbeResult
from platforms._shared.gpu import install
from platforms._shared.gpu.plugin import DeviceOptions, chosen_gpu
from platforms.cuda import devices as cuda
from platforms.cuda import plugin as cuda_plugin
from platforms.rocm import devices as rocm
from platforms.rocm import plugin as rocm_plugin
from platforms.xpu import devices as xpu
from platforms.xpu import plugin as xpu_plugin

# --- NVIDIA --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nvml", "environ", "state", "sentence"),
    [
        (Nvml(), {}, "AVAILABLE", "1 of NVIDIA H100 80GB HBM3 (sm_90)"),
        (Nvml(start=NVMLError_LibraryNotFound("no lib")), {}, "ABSENT", "libnvidia-ml.so.1 was not found"),
        (Nvml(start=NVMLError("Driver Not Loaded")), {}, "ABSENT", "does not run: Driver Not Loaded"),
        (Nvml(gpus=[]), {}, "ABSENT", "finds no GPU"),
        (Nvml(), {"CUDA_VISIBLE_DEVICES": ""}, "ABSENT", "CUDA_VISIBLE_DEVICES hides all 1 GPUs"),
        (Nvml(), {"CUDA_VISIBLE_DEVICES": "7"}, "BROKEN", "names no GPU of this machine"),
        (
            Nvml(cuda=12020),
            {},
            "BROKEN",
            "driver 535.104.05 is too old: it has CUDA 12.2, and torch was built for 13.0",
        ),
        (Nvml(gpus=[Gpu(capability=(7, 5))]), {}, "BROKEN", "compute capability 7.5 is older than 8.0"),
        (Nvml(gpus=[Gpu(free=GIB // 2)]), {}, "BROKEN", "its memory is taken: 0.5 of 80.0 GiB are free"),
        (Nvml(gpus=[Gpu(mig=True)]), {}, "BROKEN", "it is divided by MIG"),
        (Nvml(gpus=[Gpu(mig=False)]), {}, "AVAILABLE", "sm_90"),
        (Nvml(gpus=[Gpu(mig=True)]), {"CUDA_VISIBLE_DEVICES": "MIG-1"}, "AVAILABLE", "MIG-1 of H100"),
        (
            Nvml(gpus=[Gpu(), Gpu(free=0)]),
            {},
            "AVAILABLE",
            "1 of NVIDIA H100 80GB HBM3 (sm_90); GPU 1: its memory is taken",
        ),
    ],
)
def test_nvidia(nvml: Nvml, environ: dict[str, str], state: str, sentence: str, tmp_path: Path) -> None:
    found = cuda.find(nvml, "13.0", environ, tmp_path)
    assert found.state == state and sentence in found.reason
    assert nvml.open == 0, "NVML was left open"
    assert bool(found.devices) == (state == "AVAILABLE")


def test_a_container_without_the_device(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").touch()
    found = cuda.find(Nvml(start=NVMLError("Driver Not Loaded")), "13.0", {}, tmp_path)
    assert found.state == "ABSENT" and "--gpus all" in found.reason


def test_devices_are_numbered_as_cuda_numbers_them() -> None:
    nvml = Nvml(gpus=[Gpu(name="first"), Gpu(name="second", capability=(8, 0))])
    found = cuda.find(nvml, "13.0", {"CUDA_VISIBLE_DEVICES": "1,0"})
    assert [(device.index, device.name, device.details["sm"]) for device in found.devices] == [
        (0, "second", "80"),
        (1, "first", "90"),
    ]


# --- AMD -----------------------------------------------------------------------------------------------------


def kfd(root: Path, *versions: int, node: bool = True) -> Path:
    """A machine whose topology has a processor and GPUs of these targets."""
    for index, version in enumerate([0, *versions]):
        directory = root / f"sys/class/kfd/kfd/topology/nodes/{index}"
        (directory / "mem_banks/0").mkdir(parents=True)
        (directory / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")
        (directory / "mem_banks/0/properties").write_text(f"heap_type 1\nsize_in_bytes {192 * GIB}\n")
    (root / "dev").mkdir()
    if node:
        (root / "dev/kfd").touch()
    return root


def test_amd(tmp_path: Path) -> None:
    found = rocm.find({}, kfd(tmp_path, 90402, 90010, 110000))
    assert [device.details["gfx"] for device in found.devices] == ["gfx942", "gfx90a", "gfx1100"]
    assert found.devices[0].memory_bytes == 192 * GIB and found.score == 100
    hidden = rocm.find({"HIP_VISIBLE_DEVICES": "2,0"}, tmp_path)
    assert [device.details["gfx"] for device in hidden.devices] == ["gfx1100", "gfx942"]
    assert "HIP_VISIBLE_DEVICES=-1 hides every GPU" in rocm.find({"HIP_VISIBLE_DEVICES": "-1"}, tmp_path).reason


def test_no_amd_gpu(tmp_path: Path) -> None:
    assert "the amdgpu driver shows none" in rocm.find({}, tmp_path).reason
    assert "finds no GPU that computes" in rocm.find({}, kfd(tmp_path / "a")).reason
    without = rocm.find({}, kfd(tmp_path / "b", 90402, node=False))
    assert without.state == "ABSENT" and "--device /dev/kfd" in without.reason


def test_an_amd_gpu_that_the_kernels_were_not_compiled_for(tmp_path: Path) -> None:
    found = rocm.find({}, kfd(tmp_path, 90006))
    assert found.state == "BROKEN" and "not for gfx906" in found.reason


# --- Intel ---------------------------------------------------------------------------------------------------


def drm(root: Path, vendor: str = "0x8086", driver: str = "xe", *, node: bool = True) -> Path:
    device = root / "sys/class/drm/renderD128/device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "device").write_text("0xe20b\n")
    (root / "drivers" / driver).mkdir(parents=True)
    (device / "driver").symlink_to(root / "drivers" / driver)
    (root / "dev/dri").mkdir(parents=True)
    if node:
        (root / "dev/dri/renderD128").touch()
    return root


def test_intel(tmp_path: Path) -> None:
    root = drm(tmp_path / "a")
    assert xpu.find({}, root, lambda name: name).devices == (
        DeviceInfo(index=0, name="Intel GPU 0xe20b", details={"node": "renderD128"}),
    )
    assert "no Level Zero" in xpu.find({}, root, lambda name: None).reason
    assert "ZE_AFFINITY_MASK" in xpu.find({"ZE_AFFINITY_MASK": ""}, root, lambda name: name).reason
    assert "no Intel GPU" in xpu.find({}, tmp_path / "none").reason
    assert "no Intel GPU" in xpu.find({}, drm(tmp_path / "b", vendor="0x1002"), lambda name: name).reason
    assert "--device /dev/dri" in xpu.find({}, drm(tmp_path / "c", node=False), lambda name: name).reason


# --- all -----------------------------------------------------------------------------------------------------


def test_a_torch_of_another_vendor_is_told_from_its_files() -> None:
    source = "from typing import Optional\n__version__ = '2.13.0+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n"
    versions = install.assigned(source)
    assert versions == {"__version__": "2.13.0+rocm6.4", "hip": "6.4"}
    reason = install.missing(versions, "cuda", "cuda", "")
    assert "torch 2.13.0+rocm6.4 was built for hip, not for cuda: pip install" in reason
    assert "torch is not installed" in install.missing(None, "hip", "rocm", "--index-url X")


def test_what_triton_compiles_with_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: importlib.util.find_spec("json"))
    monkeypatch.delenv("CC", raising=False)
    built = {"__version__": "2.13.0+cu130", "cuda": "13.0"}
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    assert "C compiler" in install.missing(built, "cuda", "cuda", "")
    monkeypatch.setenv("CC", "cc")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(install.sysconfig, "get_path", lambda name: str(tmp_path))
    assert install.missing(built, "cuda", "cuda", "") == ""
    (tmp_path / "Python.h").unlink()
    assert "headers" in install.missing(built, "cuda", "cuda", "")


@pytest.mark.parametrize("plugin", [cuda_plugin, rocm_plugin, xpu_plugin], ids=lambda plugin: plugin.NAME)
def test_without_a_gpu_and_with_the_cpus_torch_a_platform_is_absent(plugin: object) -> None:
    found = plugin.probe(ProbeEnv())  # type: ignore[attr-defined]
    assert found.state == "ABSENT" and "was built for the CPU alone" in found.reason and "pip install" in found.reason


def test_an_unknown_device_is_refused() -> None:
    devices = [DeviceInfo(index=0, name="a"), DeviceInfo(index=1, name="b")]
    found = ProbeResult(state="AVAILABLE", reason="", devices=devices)
    assert chosen_gpu("cuda", DeviceOptions, PlatformContext(options={"device": "1"}), found)[1].name == "b"
    with pytest.raises(ConfigError, match=r"cuda\.device.*2 is not one of the devices found: 0, 1"):
        chosen_gpu("cuda", DeviceOptions, PlatformContext(options={"device": "2"}), found)


def test_probing_imports_no_torch_no_triton_and_no_nvml() -> None:
    code = (
        "import sys\nfrom core.platform import ProbeEnv\n"
        "from platforms.cuda import plugin as a\nfrom platforms.rocm import plugin as b\nfrom platforms.xpu import plugin as c\n"
        "states = [each.probe(ProbeEnv()).state for each in (a, b, c)]\n"
        "print(states, sorted({'torch', 'triton', 'pynvml', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "['ABSENT', 'ABSENT', 'ABSENT'] []"
