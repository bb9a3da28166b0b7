"""The NVIDIA GPUs of this machine, by NVML, which makes no context. Source: NVML API Reference Guide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.platform import DeviceInfo, ProbeResult

#: The oldest compute capability that the kernels are compiled for, and what it has.
OLDEST = (8, 0)
#: Bytes without which not even a small model runs.
_LEAST_FREE = 1 << 30


def find(nvml: Any, cuda: str, environ: Mapping[str, str], root: Path = Path("/")) -> ProbeResult:
    """What NVML says of this machine. `cuda` is the version that torch was built for; `nvml` is the module pynvml."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return _no_driver(nvml, error, root)
    try:
        return _found(nvml, cuda, environ)
    except nvml.NVMLError as error:
        return ProbeResult(state="BROKEN", reason=f"NVML answers with an error: {error}; does nvidia-smi work?")
    finally:
        nvml.nvmlShutdown()


def _no_driver(nvml: Any, error: Exception, root: Path) -> ProbeResult:
    """Why NVML does not start: a container that was given no device, or a machine that has none."""
    if (root / "proc/driver/nvidia/version").exists() and not (root / "dev/nvidiactl").exists():
        reason = "the machine has an NVIDIA driver, and this container none of its devices: start it with --gpus all"
        return ProbeResult(state="ABSENT", reason=reason)
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return ProbeResult(state="ABSENT", reason="no NVIDIA driver: libnvidia-ml.so.1 was not found")
    return ProbeResult(state="ABSENT", reason=f"the NVIDIA driver does not run: {error}")


def _found(nvml: Any, cuda: str, environ: Mapping[str, str]) -> ProbeResult:
    count = nvml.nvmlDeviceGetCount()
    if count == 0:
        return ProbeResult(state="ABSENT", reason="the NVIDIA driver runs and finds no GPU")
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return ProbeResult(state="ABSENT", reason=f"CUDA_VISIBLE_DEVICES hides all {count} GPUs")
    version = nvml.nvmlSystemGetCudaDriverVersion()
    if version // 1000 < int(cuda.split(".", maxsplit=1)[0]):
        return ProbeResult(
            state="BROKEN",
            reason=f"driver {nvml.nvmlSystemGetDriverVersion()} is too old: it has CUDA {version // 1000}."
            f"{version % 1000 // 10}, and torch was built for {cuda}: update it, or install a torch of an older CUDA",
        )
    devices, problems = [], []
    for index, handle in enumerate(_visible(nvml, count, environ)):
        problem = _problem(nvml, handle)
        if problem:
            problems.append(f"GPU {index}: {problem}")
        else:
            devices.append(_info(nvml, handle, index))
    if not devices:
        return ProbeResult(
            state="BROKEN", reason="; ".join(problems) or "CUDA_VISIBLE_DEVICES names no GPU of this machine"
        )
    names = ", ".join(dict.fromkeys(f"{device.name} (sm_{device.details['sm']})" for device in devices))
    return ProbeResult(
        state="AVAILABLE",
        reason="; ".join([f"{len(devices)} of {names}", *problems]),
        devices=tuple(devices),
        score=100,
    )


def _visible(nvml: Any, count: int, environ: Mapping[str, str]) -> list[Any]:
    """The handles in CUDA's order: as CUDA_VISIBLE_DEVICES lists them, up to the first that does not exist."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return handles
    found = []
    for name in (part.strip() for part in environ["CUDA_VISIBLE_DEVICES"].split(",")):
        if name.isdigit() and int(name) < count:
            found.append(handles[int(name)])
        elif name.startswith(("GPU-", "MIG-")):
            found.append(nvml.nvmlDeviceGetHandleByUUID(name))
        else:
            break
    return found


def _problem(nvml: Any, handle: Any) -> str:
    capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    if tuple(capability) < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is older than {OLDEST[0]}.{OLDEST[1]} (Ampere)"
    if _divided(nvml, handle):
        return "it is divided by MIG: put the UUID of an instance (`nvidia-smi -L`) into CUDA_VISIBLE_DEVICES"
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    if memory.free < _LEAST_FREE:
        free, total = memory.free / 2**30, memory.total / 2**30
        return f"its memory is taken: {free:.1f} of {total:.1f} GiB are free; `nvidia-smi` shows by whom"
    return ""


def _divided(nvml: Any, handle: Any) -> bool:
    """Whether this is a whole GPU in MIG mode, which runs nothing itself; GPUs without MIG do not know the question."""
    try:
        if nvml.nvmlDeviceIsMigDeviceHandle(handle):
            return False
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError_NotSupported:
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _info(nvml: Any, handle: Any, index: int) -> DeviceInfo:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return DeviceInfo(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
        details={"sm": f"{major}{minor}"},
    )
