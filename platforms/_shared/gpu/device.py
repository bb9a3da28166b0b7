"""The seam to a GPU: all that the platforms ask of torch's device modules. Tests put a device of host memory here."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import DeviceLost
from core.platform import MemoryInfo

Replay = Callable[[], None]


class Device(abc.ABC):
    """One GPU. `name` is torch's for it, `target` what kernels are compiled for, `graphs` whether steps are captured."""

    name: str
    target: str
    graphs: bool

    @abc.abstractmethod
    def memory(self) -> MemoryInfo:
        """All of its memory, and what this process could still take, torch's cache included."""

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Wait for what it was given. Raises DeviceLost."""

    @abc.abstractmethod
    def pinned(self, nbytes: int) -> Tensor:
        """Host memory, uint8 [nbytes], that it can copy from and to while the host goes on."""

    @abc.abstractmethod
    def capture(self, step: Callable[[], None]) -> Replay:
        """Run `step` once, so that its kernels are compiled, capture it, and return what replays it."""


class TorchDevice(Device):
    """A device of `torch.cuda`, which is ROCm's too, or of `torch.xpu`."""

    def __init__(self, module: Any, name: str, target: str, *, graphs: bool) -> None:
        self._module = module
        self._torch_device = torch.device(name)
        self.name, self.target, self.graphs = name, target, graphs
        module.set_device(self._torch_device)
        self._pool: Any = None  # that all graphs share: only one of them runs at a time

    def memory(self) -> MemoryInfo:
        """What the driver says is free, and what torch holds without using it."""
        free, total = self._module.mem_get_info(self._torch_device)
        cached = self._module.memory_reserved(self._torch_device) - self._module.memory_allocated(self._torch_device)
        return MemoryInfo(total, free + cached)

    def synchronize(self) -> None:
        """An error of any earlier kernel shows here."""
        try:
            self._module.synchronize(self._torch_device)
        except RuntimeError as error:
            raise DeviceLost(f"{self.name}: {error}") from error

    def pinned(self, nbytes: int) -> Tensor:
        """Page-locked memory."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def capture(self, step: Callable[[], None]) -> Replay:
        """A CUDA or HIP graph."""
        step()
        self.synchronize()
        graph = self._module.CUDAGraph()
        with self._module.graph(graph, pool=self._pool):
            step()
        self._pool = graph.pool()
        replay: Replay = graph.replay
        return replay
