"""A step's inputs on the host: made once, written at every step, and the program's own buffers where they can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.defaults import torch_dtype
from core.platform import Bucket, MemoryBackend
from core.program import Value

IntArray = npt.NDArray[np.int32]


class InputBuffers:
    """One int32 array for each of a program's inputs, by name, as large as `limits` allow.

    Where the memory backend shows a handle to the host, the array is the handle's memory and nothing is copied.
    """

    def __init__(
        self, inputs: Mapping[str, Value], handles: Mapping[int, Any], memory: MemoryBackend, limits: Bucket
    ) -> None:
        self._memory = memory
        self._copied: list[tuple[Value, Any, torch.Tensor]] = []
        self.arrays: dict[str, IntArray] = {}
        for name, value in inputs.items():
            handle = handles[value.index]
            data = memory.host_view(handle)
            if data is None:
                data = torch.zeros(value.resolve(limits.num_tokens, limits.num_seqs), dtype=torch_dtype(value.dtype))
                self._copied.append((value, handle, data))
            self.arrays[name] = data.numpy()

    def clear(self) -> None:
        """Inputs of a step in which no sequence has a token: everything is padding."""
        for array in self.arrays.values():
            array.fill(0)

    def upload(self, shape: Bucket) -> None:
        """Bring what a step of `shape` reads to the device."""
        for value, handle, data in self._copied:
            self._memory.upload(handle, data[: value.resolve(shape.num_tokens, shape.num_seqs)[0]])
