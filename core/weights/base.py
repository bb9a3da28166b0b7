"""What every weight file format gives: named tensors, read as numpy arrays, by rows where only a shard is wanted."""

from __future__ import annotations

import hashlib
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import WeightError
from core.types import DType

Bytes = NDArray[np.uint8]

#: numpy has no bfloat16: such tensors come as their bit patterns.
NUMPY_DTYPE: dict[DType, np.dtype[Any]] = {
    DType.FLOAT32: np.dtype("<f4"),
    DType.FLOAT16: np.dtype("<f2"),
    DType.BFLOAT16: np.dtype("<u2"),
    DType.INT32: np.dtype("<i4"),
    DType.INT64: np.dtype("<i8"),
    DType.INT8: np.dtype("i1"),
    DType.UINT8: np.dtype("u1"),
    DType.BOOL: np.dtype("?"),
}

_SAMPLED_TENSORS = 1024
_SAMPLE_BYTES = 4096


class TensorMeta(msgspec.Struct, frozen=True):
    """One stored tensor. `shape` is in Hugging Face's order, `[out_features, in_features]` for a linear layer.

    `quant` names a block-quantised storage type ("Q4_1"); `dtype` is then what reading gives. `nbytes` is the size on
    disk.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    quant: str | None = None


class WeightReader(ABC):
    """The tensors of one model by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`)."""

    path: Path  # the directory or file, as errors name it

    @abstractmethod
    def tensors(self) -> Mapping[str, TensorMeta]:
        """Every tensor, by name."""

    @abstractmethod
    def read(self, name: str, rows: slice | None = None) -> NDArray[Any]:
        """The tensor, or the `rows` of its first dimension, without touching the others.

        bfloat16 comes as uint16 bit patterns, quantised types dequantised to float32. The array may be a read-only
        view of the file. Raises `WeightError` for a name that is not there.
        """

    def blocks(self, name: str, rows: slice | None = None) -> Bytes:
        """A quantised tensor's own blocks, uint8 `[rows, bytes of a row]`, in the order of the rows of `read`.

        Given by readers whose `TensorMeta.quant` names one of GGUF's types. Raises `WeightError` by others.
        """
        raise WeightError(self.path, "is not kept in blocks", tensor=name)

    @abstractmethod
    def stored(self, name: str) -> Bytes:
        """The tensor's bytes as they lie in the file, shape `[nbytes]`, read-only."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Let the operating system take back the memory that reading `name` brought in. It can be read again."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. Arrays that were read stay valid."""

    def digest(self) -> str:
        """A cheap identity of the weights, as hexadecimal SHA-256.

        It covers every tensor's name, shape and type, and a page out of the middle of up to 1024 tensors: a fine-tune has
        the shapes of its base, so the header alone would not tell them apart. It does not depend on how the tensors are
        spread over files or where these lie.
        """
        tensors = self.tensors()
        sha = hashlib.sha256()
        stride = -(-len(tensors) // _SAMPLED_TENSORS)
        for i, name in enumerate(sorted(tensors)):
            meta = tensors[name]
            sha.update(msgspec.json.encode((name, meta.shape, meta.dtype, meta.quant)))
            if i % stride == 0:
                start = max(0, (meta.nbytes - _SAMPLE_BYTES) // 2)
                sha.update(self.stored(name)[start : start + _SAMPLE_BYTES].tobytes())
        return sha.hexdigest()


class MappedFile:
    """A file as read-only memory. Raises `WeightError` where it cannot be opened or is empty.

    A file that is cut short by someone else while it is mapped ends the process (SIGBUS): replace model files by
    renaming, not in place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise WeightError(path, "the file is empty; fetch it again")
                self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise WeightError(path, f"cannot be read: {error.strerror}") from error

    def view(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes at `offset`, not copied. The range has been checked by whoever parsed the header.

        The view keeps the mapping alive, so there is nothing to close: it goes with its last reference.
        """
        return np.frombuffer(self.memory, np.uint8, nbytes, offset)

    def release(self, offset: int, nbytes: int) -> None:
        """Drop the pages of a range from this process; whole pages, so neighbours may be read from disk again."""
        if nbytes == 0:  # may lie at the very end, where there is no page
            return
        start = offset - offset % mmap.PAGESIZE
        self.memory.madvise(mmap.MADV_DONTNEED, start, offset + nbytes - start)
