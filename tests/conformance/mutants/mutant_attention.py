"""Faults of attention over the paged cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from mutant_faults import fault
from mutant_platform import MutantPlatform, RowAttention
from torch import Tensor

from core import ops
from core.errors import Unsupported
from core.platform import AttentionQuery, KVLayout

_Backend = type[RowAttention]


def wrong(name: str, what: str, caught_by: str) -> Callable[[_Backend], _Backend]:
    """Register an attention backend that is wrong."""

    def register(backend: _Backend) -> _Backend:
        @fault(name, what, caught_by)
        def breaks(platform: MutantPlatform) -> None:
            platform.attention_backends = (backend(),)

        return backend

    return register


# --- writing -------------------------------------------------------------------------------------------------


@wrong("kv-slot-off-by-one", "keys and values are written one slot further", "attention.lengths")
class SlotOffByOne(RowAttention):
    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        slots = len(cache[0]) * cache[0].shape[2]
        super().write_kv(key, value, cache, (slot_mapping + 1) % slots)


@wrong("padding-into-live-block", "keys of padding are written into the last block", "attention.padding")
class PaddingIntoLiveBlock(RowAttention):
    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        last = (len(cache[0]) - 1) * cache[0].shape[2]
        super().write_kv(key, value, cache, torch.where(slot_mapping == 0, last, slot_mapping))


@wrong("value-is-key", "columns of the wide tensor are taken for the whole, so that values are keys", "attention.views")
class ValueIsKey(RowAttention):
    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        width = value.shape[1]
        super().write_kv(key, value.as_strided(value.shape, (width, 1)), cache, slot_mapping)


@wrong("last-block-dropped", "what belongs into the cache's last block is dropped", "executor.full_cache")
class LastBlockDropped(RowAttention):
    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        keep = slot_mapping < (len(cache[0]) - 1) * cache[0].shape[2]
        super().write_kv(key[keep], value[keep], cache, slot_mapping[keep])


# --- reading -------------------------------------------------------------------------------------------------


@wrong("mask-off-by-one", "a token of a prefill sees the one after it", "attention.lengths")
class MaskOffByOne(RowAttention):
    def attend(self, *args: Any, **attrs: Any) -> None:
        query, cache, table, starts, lengths, out = args
        same = (table[1:] == table[:-1]).all(1) & (lengths[1:] == lengths[:-1] + 1)
        further = lengths + torch.cat([same, same.new_zeros(1)])
        ops.attention_reference(query, cache, table, starts, further, out, **attrs)


@wrong("own-token-hidden", "a token does not see itself, but for the first", "attention.lengths")
class OwnTokenHidden(RowAttention):
    def attend(self, *args: Any, **attrs: Any) -> None:
        query, cache, table, starts, lengths, out = args
        ops.attention_reference(query, cache, table, starts, (lengths - 1).clamp_min(1), out, **attrs)


@wrong("window-off-by-one", "a sliding window is one token too long", "attention.window")
class WindowOffByOne(RowAttention):
    def attend(self, *args: Any, window: int | None, **attrs: Any) -> None:
        ops.attention_reference(*args, window=None if window is None else window + 1, **attrs)


@wrong("window-ignored", "a sliding window is ignored", "attention.window")
class WindowIgnored(RowAttention):
    def attend(self, *args: Any, window: int | None, **attrs: Any) -> None:
        ops.attention_reference(*args, window=None, **attrs)


@wrong("scale-ignored", "the softmax scale is always one over the root of the head's width", "attention.scale")
class ScaleIgnored(RowAttention):
    def attend(self, *args: Any, scale: float, head_dim: int, **attrs: Any) -> None:
        ops.attention_reference(*args, scale=head_dim**-0.5, head_dim=head_dim, **attrs)


@wrong("heads-interleaved", "query head h reads KV head h modulo their number", "attention.heads")
class HeadsInterleaved(RowAttention):
    def attend(self, *args: Any, head_dim: int, num_kv_heads: int, **attrs: Any) -> None:
        query, cache, table, starts, lengths, out = args
        heads = query.shape[1] // head_dim
        order = torch.arange(heads).view(-1, num_kv_heads).t().flatten()
        mixed, result = query.unflatten(-1, (heads, head_dim))[:, order].flatten(1), torch.empty_like(query)
        ops.attention_reference(
            mixed, cache, table, starts, lengths, result, head_dim=head_dim, num_kv_heads=num_kv_heads, **attrs
        )
        out.unflatten(-1, (heads, head_dim))[:, order] = result.unflatten(-1, (heads, head_dim))


def _whole_blocks(args: tuple[Any, ...], attrs: dict[str, Any], first: int | None) -> None:
    """Attention that reads whole blocks, from `first` on, and multiplies what is masked by zero."""
    query, (keys, values), table, _, lengths, out = args
    size, kv_heads, dim = keys.shape[2], attrs["num_kv_heads"], attrs["head_dim"]
    for row, length in enumerate(lengths.tolist()):
        start = max(0, length - (attrs["window"] or length)) if first is None else first
        blocks = table[row, start // size : -(-length // size)].long()
        k, v = (plane[blocks].transpose(1, 2).flatten(0, 1).float() for plane in (keys, values))
        positions = torch.arange(len(k)) + start // size * size
        hidden = (positions >= length) | (positions < length - (attrs["window"] or length))
        q = query[row].view(kv_heads, -1, dim).float()
        scores = torch.einsum("kgd,skd->kgs", q, k) * attrs["scale"]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[row] = torch.einsum("kgs,skd->kgd", weights, v).flatten().to(out.dtype)


@wrong("stale-slots-read", "slots after a sequence's end are read and multiplied by zero", "attention.stale_blocks")
class StaleSlotsRead(RowAttention):
    def attend(self, *args: Any, **attrs: Any) -> None:
        _whole_blocks(args, attrs, None)


@wrong("null-block-trusted", "blocks before a window, which are the null block, are read and multiplied by zero", "attention.stale_blocks")  # fmt: skip
class NullBlockTrusted(RowAttention):
    def attend(self, *args: Any, **attrs: Any) -> None:
        if attrs["window"] is None:
            ops.attention_reference(*args, **attrs)
        else:
            _whole_blocks(args, attrs, 0)


@wrong("attention-swallows-nan", "NaN in a query becomes zero", "attention.nan")
class SwallowsNaN(RowAttention):
    def attend(self, *args: Any, **attrs: Any) -> None:
        super().attend(*args, **attrs)
        args[5].nan_to_num_()


@wrong("attention-writes-outside", "attention clears the row after its output", "attention.guards")
class WritesOutside(RowAttention):
    def attend(self, *args: Any, **attrs: Any) -> None:
        super().attend(*args, **attrs)
        out = args[5]
        out.as_strided((out.shape[1],), (1,), out.storage_offset() + out.numel()).zero_()


@wrong("attention-narrow", "queries are scaled by a rounded constant, and rounded to bfloat16", "attention.types")
class Narrow(RowAttention):
    def attend(self, *args: Any, **attrs: Any) -> None:
        query, cache, *rest = args
        ops.attention_reference((query * 1.003).bfloat16().to(query.dtype), cache, *rest, **attrs)


@wrong("chunk-dependent", "long prefills are summed in another order than short ones", "invariance.chunks")
class ChunkDependent(RowAttention):
    def forward(self, query: Tensor, *args: Any, **attrs: Any) -> None:
        super().forward(query, *args, **attrs)
        if len(query) > 8:
            args[-1].mul_(1 + 2**-23)


# --- whole blocks --------------------------------------------------------------------------------------------


@wrong("copies-at-once", "copy_blocks reads all sources before it writes", "attention.copy_blocks")
class CopiesAtOnce(RowAttention):
    def copy_blocks(self, cache: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> None:
        for plane in cache:
            sources = [plane[source].clone() for source, _ in pairs]
            for (_, target), data in zip(pairs, sources, strict=True):
                plane[target] = data


@wrong("copies-keys-only", "copy_blocks forgets the values", "attention.copy_blocks")
class CopiesKeysOnly(RowAttention):
    def copy_blocks(self, cache: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> None:
        super().copy_blocks(cache[:1], pairs)


@wrong("import-in-order", "imported blocks go to ascending places", "attention.kv_transfer")
class ImportInOrder(RowAttention):
    def import_blocks(self, cache: Sequence[Tensor], blocks: Sequence[int], data: Tensor) -> None:
        super().import_blocks(cache, sorted(blocks), data)


@wrong("transfer-undone", "kv_transfer is declared and blocks cannot be exported", "attention.kv_transfer")
class TransferUndone(RowAttention):
    def export_blocks(self, cache: Sequence[Tensor], blocks: Sequence[int]) -> Tensor:
        raise Unsupported("moving KV blocks out of the device", "it is not written yet")


@wrong("layout-changes", "kv_layout() gives another answer every time", "attention.layout")
class LayoutChanges(RowAttention):
    _asked = 0

    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        self._asked += 1
        layout = super().kv_layout(query)
        return replace(layout, block_shape=(*layout.block_shape[:-1], layout.block_shape[-1] + self._asked % 2))
