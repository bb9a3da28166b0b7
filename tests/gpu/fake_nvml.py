"""pynvml as far as the probe uses it, over GPUs that a test describes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

GIB = 1 << 30


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


@dataclass
class Gpu:
    name: str = "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int] = (9, 0)
    total: int = 80 * GIB
    free: int = 79 * GIB
    mig: bool | None = None  # None: it does not know MIG
    instance: bool = False


@dataclass
class Nvml:
    """The module."""

    gpus: list[Gpu] = field(default_factory=lambda: [Gpu()])
    cuda: int = 13010
    start: Exception | None = None
    open: int = 0
    NVMLError = NVMLError
    NVMLError_LibraryNotFound = NVMLError_LibraryNotFound
    NVMLError_NotSupported = NVMLError_NotSupported
    NVML_DEVICE_MIG_ENABLE = 1

    def nvmlInit(self) -> None:
        if self.start is not None:
            raise self.start
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlSystemGetDriverVersion(self) -> str:
        return "535.104.05"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        return Gpu(name=f"{uuid} of H100", total=20 * GIB, free=19 * GIB, instance=uuid.startswith("MIG-"))

    def nvmlDeviceGetCudaComputeCapability(self, gpu: Gpu) -> tuple[int, int]:
        return gpu.capability

    def nvmlDeviceIsMigDeviceHandle(self, gpu: Gpu) -> bool:
        return gpu.instance

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> tuple[int, int]:
        if gpu.mig is None:
            raise NVMLError_NotSupported("Not Supported")
        return int(gpu.mig), int(gpu.mig)

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> SimpleNamespace:
        return SimpleNamespace(total=gpu.total, free=gpu.free)

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return gpu.name
