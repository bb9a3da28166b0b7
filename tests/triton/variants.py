"""Every kernel in every element type and tile that a target ships: what `compile_kernels.py` compiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from platforms._shared.triton.tiles import MAX_SPLITS, AttentionTile, Tiles, tiles_for

#: Element types by Triton's names.
FLOATS = ("bf16", "fp16", "fp32")
#: Model widths, and (heads, KV heads, head_dim), of Llama-like models: 135M, 8B, 70B on one of four devices.
_WIDTHS = (128, 576, 4096, 8192)
_HEADS = ((9, 3, 64), (32, 8, 128), (16, 2, 128), (16, 8, 256))
_INT, _FLOAT = "i32", "fp32"


@dataclass(frozen=True)
class Variant:
    """One compilation: `arguments` are Triton's types by name, all other arguments are in `constants`."""

    kernel: str
    label: str
    arguments: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)
    decode: bool = True  # of the decode path, where a spill is paid for at every token


def variants(target: str, *, whole: bool) -> Iterator[Variant]:
    """Of one target; without `whole` the types and shapes that models are served in, so that CI has the time."""
    tiles = tiles_for(target)
    floats = FLOATS if whole else FLOATS[:2]
    for dtype in floats:
        yield from _dense(tiles, dtype, _WIDTHS if whole else (128, 4096))
    for dtype in FLOATS if whole else ("bf16", "fp32"):
        for heads in _HEADS if whole else _HEADS[1:2]:
            yield from _attention(tiles, dtype, heads, whole=whole)
    pointers = {"positions": "*i32", "inv_freq": "*fp32", "out": "*fp32"}
    # Once a step, and its stack is no spill: libdevice reduces a large angle's range in an array.
    yield _of("rope.rope_angles", "", pointers, {"BLOCK": 64}, decode=False, scale=_FLOAT)


def _of(
    kernel: str, label: str, pointers: dict[str, str], constants: dict[str, Any], warps: int = 4, stages: int = 2,
    decode: bool = True, **scalars: str,
) -> Variant:  # fmt: skip
    integers = dict.fromkeys(_INTEGERS[kernel.split(".")[1]].split(), _INT)
    options = {"num_warps": warps, "num_stages": stages}
    return Variant(kernel, f"{kernel} {label}".strip(), {**pointers, **integers, **scalars}, constants, options, decode)


#: The integer arguments of each kernel: strides, widths and counts.
_INTEGERS = {
    "gather_rows": "table_stride out_stride width",
    "rms_norm": "x_stride out_stride count groups width",
    "add_rms_norm": "x_stride residual_stride normed_stride total_stride count width",
    "silu_mul": "gate_up_stride out_stride width",
    "rope_angles": "out_stride half",
    "rope": "x_stride angles_stride out_stride heads head_dim half",
    "kv_write": "key_stride value_stride block_stride heads head_dim block_size",
    "rope_kv_write": "key_stride angles_stride value_stride block_stride heads head_dim block_size",
    "paged_attention": "query_stride out_stride table_stride block_stride num_seqs kv_heads head_dim block_size window",
    "combine_splits": "num_seqs out_stride heads head_dim",
}


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _dense(tiles: Tiles, dtype: str, widths: tuple[int, ...]) -> Iterator[Variant]:
    from platforms._shared.triton.ops import norm_rows, norm_warps

    def floats(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, f"*{dtype}")

    columns = {"BLOCK": tiles.columns}
    yield _of("rows.gather_rows", dtype, {**floats("table", "out"), "indices": "*i32"}, columns)
    yield _of("activation.silu_mul", dtype, floats("gate_up", "out"), columns)
    for width in widths:
        block, label = _power(width), f"{dtype} {width}"
        warps, constants = norm_warps(block), {"ROWS": norm_rows(tiles, block), "BLOCK": block}
        pointers = floats("x", "weight", "out")
        yield _of("norm.rms_norm", label, pointers, constants, warps, eps=_FLOAT)
        pointers = floats("x", "residual", "weight", "normed", "total")
        yield _of("norm.add_rms_norm", label, pointers, constants, warps, eps=_FLOAT)


def _attention(tiles: Tiles, dtype: str, heads: tuple[int, int, int], *, whole: bool) -> Iterator[Variant]:
    num_heads, kv_heads, head_dim = heads
    label = f"{dtype} {num_heads}/{kv_heads} of {head_dim}"
    half, dim = _power(head_dim // 2), _power(head_dim)
    for each in (num_heads, kv_heads):
        pointers = {"x": f"*{dtype}", "angles": "*fp32", "out": f"*{dtype}"}
        constants = {"HEADS": _power(each), "HALF": half, "REST": 0}
        yield _of("rope.rope", f"{dtype} {each} heads of {head_dim}", pointers, constants)
    for kv_dtype in _kv_dtypes(tiles, dtype, whole=whole):
        pointers = _cache(kv_dtype) | {"key": f"*{dtype}", "value": f"*{dtype}", "slot_mapping": "*i32"}
        constants = {"HEADS": _power(kv_heads), "DIM": dim, "INT8": kv_dtype == "i8"}
        yield _of("kv.kv_write", f"{label}, {kv_dtype} KV", pointers, constants)
        pointers = pointers | {"angles": "*fp32"}
        yield _of("kv.rope_kv_write", f"{label}, {kv_dtype} KV", pointers, constants | {"HALF": half})
        for window in (False, True):
            yield from _paged(tiles, dtype, kv_dtype, heads, label, window=window, whole=whole)
    for splits in _splits(whole=whole)[1:]:
        pointers = {"partial": "*fp32", "partial_sums": "*fp32", "query_start": "*i32", "out": f"*{dtype}"}
        yield _of("attention.combine_splits", f"{label}, {splits} splits", pointers, {"SPLITS": splits, "DIM": dim})


def _kv_dtypes(tiles: Tiles, dtype: str, *, whole: bool) -> tuple[str, ...]:
    return (*(FLOATS if whole else (dtype,)), *(("i8",) if tiles.int8_kv else ()))


def _splits(*, whole: bool) -> list[int]:
    powers = [1 << n for n in range(MAX_SPLITS.bit_length())]
    return powers if whole else [powers[0], powers[-1]]


def _cache(kv_dtype: str) -> dict[str, str]:
    scales = "*fp32" if kv_dtype == "i8" else f"*{kv_dtype}"
    return {"keys": f"*{kv_dtype}", "values": f"*{kv_dtype}", "key_scales": scales, "value_scales": scales}


def _paged(
    tiles: Tiles, dtype: str, kv_dtype: str, heads: tuple[int, int, int], label: str, *, window: bool, whole: bool
) -> Iterator[Variant]:
    from platforms._shared.triton.attention import attention_tile

    num_heads, kv_heads, head_dim = heads
    pointers = _cache(kv_dtype) | {name: f"*{dtype}" for name in ("query", "out")}
    pointers |= dict.fromkeys(("block_table", "query_start", "seq_lens"), "*i32")
    pointers |= dict.fromkeys(("partial", "partial_sums"), "*fp32")
    for few in (True, False):
        tile: AttentionTile = attention_tile(tiles, head_dim, dtype == "fp32", few=few)
        for splits in _splits(whole=whole) if few else [1]:
            constants = {
                "GROUP": num_heads // kv_heads, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
                "DIM": max(16, _power(head_dim)), "SPLITS": splits, "WINDOW": window, "INT8": kv_dtype == "i8",
                "WIDEN": kv_dtype not in ("i8", dtype),
            }  # fmt: skip
            step = f"decode in {splits}" if few else "prefill"
            name = f"{label}, {kv_dtype} KV, {step}{', window' if window else ''}"
            yield _of(
                "attention.paged_attention", name, pointers, constants, tile.num_warps, tile.num_stages,
                decode=few, scale=_FLOAT,
            )  # fmt: skip
