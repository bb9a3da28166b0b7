"""Tensors of a GGUF file under Hugging Face's names and in Hugging Face's row order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UnsupportedModel, WeightError
from core.weights.base import NUMPY_DTYPE, Bytes, MappedFile, TensorMeta, WeightReader
from core.weights.gguf.header import read_header
from core.weights.gguf.quants import QUANT_TYPES, dequantize
from core.weights.mapping import PERMUTED, ROPE_FACTORS, GGUFConfig, eos_token_ids, hf_config, hf_name, interleaved_rows


class GGUFReader(WeightReader):
    """Reads one GGUF file. Raises `WeightError` or `UnsupportedModel` at once for a file it cannot read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        header = read_header(self._file, string_arrays=False)
        self._config = GGUFConfig(path, header.metadata)
        self._heads = self._config.num_heads()
        self._rope_factors: NDArray[np.float32] | None = None
        self._offsets: dict[str, int] = {}
        self._tensors: dict[str, TensorMeta] = {}
        for meta, offset in header.tensors.values():
            if meta.name == ROPE_FACTORS:
                self._rope_factors = np.asarray(self._typed(meta, offset), np.float32)
            else:
                self._add(meta, offset)

    def tensors(self) -> Mapping[str, TensorMeta]:
        return self._tensors

    def read(self, name: str, rows: slice | None = None) -> NDArray[Any]:
        meta = self._meta(name)
        stored = self._typed(meta, self._offsets[name])
        index = self._stored_rows(meta, rows)
        if index is None and rows is not None:
            stored = stored[rows]
        if meta.quant is not None:
            return dequantize(stored, QUANT_TYPES[meta.quant], index)
        return stored if index is None else stored[index]

    def blocks(self, name: str, rows: slice | None = None) -> Bytes:
        meta = self._meta(name)
        if meta.quant is None:
            return super().blocks(name, rows)
        stored = self._typed(meta, self._offsets[name])
        index = self._stored_rows(meta, rows)
        if index is not None:
            return stored[index]
        return stored if rows is None else stored[rows]

    def stored(self, name: str) -> Bytes:
        return self._file.view(self._offsets[name], self._meta(name).nbytes)

    def release(self, name: str) -> None:
        self._file.release(self._offsets[name], self._meta(name).nbytes)

    def close(self) -> None:
        self._offsets.clear()
        self._tensors.clear()
        del self._file

    def hf_config(self) -> dict[str, Any]:
        """The header in the words of `config.json`."""
        shapes = {name: meta.shape for name, meta in self._tensors.items()}
        return hf_config(self._config, shapes, self._rope_factors)

    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return eos_token_ids(self._config)

    def _add(self, meta: TensorMeta, offset: int) -> None:
        """Enter a tensor under its Hugging Face name."""
        name = hf_name(meta.name)
        if name is None:
            known = self._config.architecture
            raise UnsupportedModel(f"{self.path}: tensor {meta.name!r} is none of a {known} model's")
        if name in self._tensors:
            raise WeightError(self.path, f"stands for {name}, as another does", tensor=meta.name, offset=offset)
        self._tensors[name] = TensorMeta(name, meta.shape, meta.dtype, meta.nbytes, meta.quant)
        self._offsets[name] = offset
        if len(meta.shape) not in (1, 2):
            message = f"has {len(meta.shape)} dimensions; these models have vectors and matrices"
            raise WeightError(self.path, message, tensor=meta.name, offset=offset)
        heads = self._permuted_heads(name)
        if heads is not None and meta.shape[0] % (2 * heads):
            message = f"{list(meta.shape)} does not divide into {heads} heads of an even size"
            raise WeightError(self.path, message, tensor=meta.name, offset=offset)

    def _meta(self, name: str) -> TensorMeta:
        meta = self._tensors.get(name)
        if meta is None:
            raise WeightError(self.path, "is not in this file", tensor=name)
        return meta

    def _typed(self, meta: TensorMeta, offset: int) -> NDArray[Any]:
        """The stored tensor, not copied: blocks as uint8 `[..., row_bytes]`, others in their own type and shape."""
        stored = self._file.view(offset, meta.nbytes)
        if meta.quant is None:
            return stored.view(NUMPY_DTYPE[meta.dtype]).reshape(meta.shape)
        quant = QUANT_TYPES[meta.quant]
        return stored.reshape(*meta.shape[:-1], meta.shape[-1] // quant.block_weights * quant.block_bytes)

    def _permuted_heads(self, name: str) -> int | None:
        """How many heads' rows are interleaved in this tensor; None where rows are in Hugging Face's order."""
        if self._config.architecture not in PERMUTED:
            return None
        if ".q_proj." in name:
            return self._heads[0]
        return self._heads[1] if ".k_proj." in name else None

    def _stored_rows(self, meta: TensorMeta, rows: slice | None) -> NDArray[np.int64] | None:
        """The file's rows that hold the wanted ones, where their order is not the same."""
        heads = self._permuted_heads(meta.name)
        if heads is None:
            return None
        index = interleaved_rows(heads, meta.shape[0])
        return index if rows is None else index[rows]
