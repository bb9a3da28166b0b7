"""Faults of weights that are kept quantised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mutant_faults import fault
from mutant_memory import wrong
from mutant_platform import Memory, MutantPlatform, linear
from torch import Tensor

from core import ops
from core.defaults import ReferenceKernels
from core.platform import QuantizedRows
from core.quantization import quantized
from core.types import DType


@wrong("int8-by-tensor", "int8 has one scale for all rows that are uploaded", "quantization.online")
class OneScale(Memory):
    def upload(self, handle: Tensor, data: Tensor, *, row: int = 0) -> None:
        if any(part.scheme == "int8" for part in self._parts.get(id(handle), ())):
            data = quantized(data.reshape(1, -1), "int8").view_as(data) if len(data) else data
        super().upload(handle, data, row=row)


@wrong("int4-no-minimum", "int4 has a scale and no minimum", "quantization.online")
class NoMinimum(Memory):
    def upload(self, handle: Tensor, data: Tensor, *, row: int = 0) -> None:
        if any(part.scheme == "int4" for part in self._parts.get(id(handle), ())):
            groups = data.view(len(data), -1, 32)
            scale = groups.abs().amax(2, keepdim=True) / 7
            data = ((groups / scale).round().clamp(-8, 7) * scale).view_as(data)
        super().upload(handle, data, row=row)


@wrong("quantized-size-low", "quantized_size() forgets the scales", "quantization.online")
class SizeLow(Memory):
    def quantized_size(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> int:
        return super().quantized_size(shape, dtype, parts) - 4 * shape[0]


@wrong("blocks-ignore-row", "upload_blocks() always begins at row 0", "quantization.blocks")
class BlocksIgnoreRow(Memory):
    def upload_blocks(self, handle: Any, blocks: Tensor, scheme: str, *, row: int = 0) -> None:
        super().upload_blocks(handle, blocks, scheme)


@wrong(
    "blocks-nibbles-swapped",
    "the low and the high halves of Q4_0's bytes are taken for each other",
    "quantization.blocks",
)
class NibblesSwapped(Memory):
    def upload_blocks(self, handle: Any, blocks: Tensor, scheme: str, *, row: int = 0) -> None:
        if scheme == "q4_0":
            whole = blocks.view(len(blocks), -1, 18).clone()
            whole[..., 2:] = (whole[..., 2:] >> 4) | (whole[..., 2:] << 4)
            blocks = whole.flatten(1)
        super().upload_blocks(handle, blocks, scheme, row=row)


@wrong("blocks-written-partly", "blocks that do not fit are written as far as they fit", "quantization.misfit")
class WrittenPartly(Memory):
    def upload_blocks(self, handle: Any, blocks: Tensor, scheme: str, *, row: int = 0) -> None:
        super().upload_blocks(handle, blocks[: len(handle) - row], scheme, row=row)


def _quantized_activations(x: Tensor, scale: Tensor) -> Tensor:
    return ((x.float() / scale).round() * scale).nan_to_num(0).to(x.dtype)


@fault("activations-by-batch", "activations are quantised by one scale for the batch", "quantization.batch")
def activations_by_batch(platform: MutantPlatform) -> None:
    def by_batch(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        linear(_quantized_activations(x, x.float().abs().max() / 127), weight, bias, out)

    platform.table = ReferenceKernels({"linear": by_batch})


@fault("activations-of-four-bits", "activations are quantised to four bits", "quantization.products")
def activations_of_four_bits(platform: MutantPlatform) -> None:
    def coarse(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        linear(_quantized_activations(x, x.float().abs().amax(1, keepdim=True) / 7), weight, bias, out)

    platform.table = ReferenceKernels({"linear": coarse})


@fault("last-part-lost", "linear leaves the columns of the last eight outputs", "quantization.products")
def last_part_lost(platform: MutantPlatform) -> None:
    def short(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        linear(x, weight, bias, out)
        if len(weight) > 100:
            out[:, -8:] = 0

    platform.table = ReferenceKernels({"linear": short})


@fault("embedding-of-another-row", "embedding reads the row before", "quantization.products")
def embedding_of_another_row(platform: MutantPlatform) -> None:
    def before(token_ids: Tensor, weight: Tensor, out: Tensor) -> None:
        ops.embedding_reference(torch.clamp(token_ids - 1, min=0), weight, out)

    platform.table = ReferenceKernels({"linear": linear, "embedding": before})
