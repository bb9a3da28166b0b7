"""The op table: what a model may do, and what each op means.

For each op there are two functions. `linear(x, weight)` is what a model's layers call: it appends the op to the
program being recorded and infers the shape. `REFERENCE["linear"]` is its meaning, in plain torch: what every
kernel is tested against, and what a platform may claim until it has a kernel of its own. Kernels are called as
`kernel(*inputs, *outputs, **attrs)` and write into the outputs they are given.

Shapes: T = num_tokens, S = num_seqs, H = hidden size, D = head_dim. Norms, softmax and rotations are computed in
float32 whatever the element type, then rounded once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import RecordingError
from core.program import NUM_SEQS, OpProgram, Value, current_program, recording
from core.types import DType

Kernel = Callable[..., None]

REFERENCE: dict[str, Kernel] = {}

#: Ops whose kernels come from the platform's attention backend, which owns the layout of the KV cache.
ATTENTION_OPS = frozenset({"kv_write", "attention"})

#: Ops that only encoders and poolers use (contract 1.2): a platform without them still serves every decoder.
ENCODER_OPS = frozenset({"add", "add_layer_norm", "activation", "encoder_attention", "mean_rows"})


def reference(kernel: Kernel) -> Kernel:
    """Register `kernel` as the meaning of the op it is named after."""
    REFERENCE[kernel.__name__.removesuffix("_reference")] = kernel
    return kernel


def _one(values: tuple[Value, ...]) -> Value:
    (value,) = values
    return value


# --- dense ---------------------------------------------------------------------------------------------------


def embedding(token_ids: Value, weight: Value) -> Value:
    """Rows of `weight` [vocab, H] by `token_ids` [T] int32 -> [T, H]."""
    shape = (token_ids.shape[0], weight.shape[1])
    return _one(current_program().call("embedding", (token_ids, weight), ((shape, weight.dtype),)))


@reference
def embedding_reference(token_ids: Tensor, weight: Tensor, out: Tensor) -> None:
    torch.index_select(weight, 0, token_ids, out=out)


def linear(x: Value, weight: Value, bias: Value | None = None, *, out_dtype: DType | None = None) -> Value:
    """x [T, K] times weight [N, K] transposed, plus bias [N] -> [T, N], in `out_dtype` or x's type.

    A product in a wider `out_dtype` may be rounded to x's type first, as the reference does, or not.
    """
    if x.shape[-1] != weight.shape[1]:
        raise RecordingError(f"linear: {x!r} does not fit {weight!r}")
    shape = (*x.shape[:-1], weight.shape[0])
    return _one(current_program().call("linear", (x, weight, bias), ((shape, out_dtype or x.dtype),)))


@reference
def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if out.dtype != x.dtype:
        out.copy_(torch.nn.functional.linear(x, weight, bias))
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def split(x: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
    """Columns of x [T, sum(sizes)] as views; nothing is computed or copied."""
    if sum(sizes) != x.shape[-1]:
        raise RecordingError(f"split: sizes {list(sizes)} do not add up to the width of {x!r}")
    program, views, offset = current_program(), [], 0
    for size in sizes:
        views.append(program.view(x, f"{x.name}[{offset}:{offset + size}]", offset, size))
        offset += size
    return tuple(views)


def select_rows(x: Value, indices: Value) -> Value:
    """Rows of x [T, H] by `indices` [S] int32 -> [S, H]."""
    shape = (indices.shape[0], x.shape[1])
    return _one(current_program().call("select_rows", (x, indices), ((shape, x.dtype),)))


@reference
def select_rows_reference(x: Tensor, indices: Tensor, out: Tensor) -> None:
    torch.index_select(x, 0, indices, out=out)


# --- norms and activations -----------------------------------------------------------------------------------


def rms_norm(x: Value, weight: Value, *, eps: float) -> Value:
    """Root-mean-square norm (Zhang & Sennrich 2019) of each run of len(weight) columns of x [T, n * len(weight)]."""
    return _one(current_program().call("rms_norm", (x, weight), ((x.shape, x.dtype),), eps=eps))


@reference
def rms_norm_reference(x: Tensor, weight: Tensor, out: Tensor, *, eps: float) -> None:
    groups = x.float().unflatten(-1, (-1, weight.shape[0]))
    normed = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    # The order of Llama's own code: round to the element type, then scale.
    out.copy_((normed.to(x.dtype) * weight).flatten(-2))


def add_rms_norm(x: Value, residual: Value, weight: Value, *, eps: float) -> tuple[Value, Value]:
    """The residual sum and its norm: s = x + residual [T, H] -> (rms_norm(s), s)."""
    outputs = current_program().call(
        "add_rms_norm", (x, residual, weight), ((x.shape, x.dtype), (x.shape, x.dtype)), eps=eps
    )
    return cast("tuple[Value, Value]", outputs)


@reference
def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, normed: Tensor, total: Tensor, *, eps: float
) -> None:
    torch.add(x, residual, out=total)
    rms_norm_reference(total, weight, normed, eps=eps)


def silu_mul(gate_up: Value) -> Value:
    """SwiGLU (Shazeer 2020): gate_up [T, 2 I] -> silu(first half) * second half [T, I]."""
    width = gate_up.shape[-1]
    assert isinstance(width, int)
    shape = (gate_up.shape[0], width // 2)
    return _one(current_program().call("silu_mul", (gate_up,), ((shape, gate_up.dtype),)))


@reference
def silu_mul_reference(gate_up: Tensor, out: Tensor) -> None:
    gate, up = gate_up.chunk(2, dim=-1)
    torch.mul(torch.nn.functional.silu(gate), up, out=out)


# --- rotary position embedding -------------------------------------------------------------------------------


def rope_angles(positions: Value, inv_freq: Value, *, scale: float = 1.0) -> Value:
    """cos and sin of position * inv_freq, times `scale`: [T], [R / 2] float32 -> [T, R] float32, cos first."""
    width = inv_freq.shape[0]
    assert isinstance(width, int)
    shape = (positions.shape[0], 2 * width)
    call = current_program().call("rope_angles", (positions, inv_freq), ((shape, DType.FLOAT32),), scale=scale)
    return _one(call)


@reference
def rope_angles_reference(positions: Tensor, inv_freq: Tensor, out: Tensor, *, scale: float) -> None:
    angles = torch.outer(positions.float(), inv_freq)
    half = inv_freq.shape[0]
    torch.cos(angles, out=out[:, :half])
    torch.sin(angles, out=out[:, half:])
    if scale != 1.0:
        out.mul_(scale)


def rope(x: Value, angles: Value, *, head_dim: int) -> Value:
    """Rotate each head of x [T, heads * head_dim] (RoFormer, Su et al. 2021; halves paired, as in GPT-NeoX).

    The first R = angles.shape[1] dimensions of a head are rotated, the rest pass through.
    """
    return _one(current_program().call("rope", (x, angles), ((x.shape, x.dtype),), head_dim=head_dim))


@reference
def rope_reference(x: Tensor, angles: Tensor, out: Tensor, *, head_dim: int) -> None:
    half = angles.shape[1] // 2
    cos, sin = angles[:, None, :half], angles[:, None, half:]
    heads = x.unflatten(-1, (-1, head_dim))
    first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
    target = out.unflatten(-1, (-1, head_dim))
    target[..., :half] = first * cos - second * sin
    target[..., half : 2 * half] = second * cos + first * sin
    target[..., 2 * half :] = heads[..., 2 * half :]


# --- attention over the paged KV cache -----------------------------------------------------------------------


def kv_write(key: Value, value: Value, cache: Value, slot_mapping: Value) -> None:
    """Store key and value [T, kv_heads * D] at `slot_mapping` [T] int32 = block * block_size + offset."""
    current_program().call("kv_write", (key, value, cache, slot_mapping), ())


def attention(
    query: Value,
    cache: Value,
    block_table: Value,
    query_start: Value,
    seq_lens: Value,
    *,
    head_dim: int,
    num_kv_heads: int,
    scale: float,
    window: int | None,
) -> Value:
    """Causal attention of query [T, heads * D] over the cached keys and values -> [T, heads * D].

    Sequence s owns query rows `query_start[s] : query_start[s + 1]` (possibly none) and its context, those rows
    included, is `seq_lens[s]` tokens long; `block_table` [S, max_blocks] int32 says where it lies. Its i-th row
    stands at position seq_lens[s] - rows + i and sees positions p with 0 <= position - p (< window, if one is given).
    """
    inputs = (query, cache, block_table, query_start, seq_lens)
    outputs = ((query.shape, query.dtype),)
    attrs = {"head_dim": head_dim, "num_kv_heads": num_kv_heads, "scale": scale, "window": window}
    return _one(current_program().call("attention", inputs, outputs, **attrs))


@reference
def kv_write_reference(key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
    """`cache` is (keys, values), each [num_blocks, kv_heads, block_size, D]."""
    for source, target in zip((key, value), cache, strict=True):
        block, offset = slot_mapping.long() // target.shape[2], slot_mapping.long() % target.shape[2]
        target[block, :, offset] = source.unflatten(-1, (target.shape[1], -1)).to(target.dtype)


@reference
def attention_reference(
    query: Tensor,
    cache: Sequence[Tensor],
    block_table: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    *,
    head_dim: int,
    num_kv_heads: int,
    scale: float,
    window: int | None,
) -> None:
    """`cache` is (keys, values), each [num_blocks, kv_heads, block_size, D]."""
    block_size = cache[0].shape[2]
    starts = query_start.tolist()
    for index, length in enumerate(seq_lens.tolist()):
        start, stop = starts[index], starts[index + 1]
        if start == stop:
            continue
        # Positions that no row sees are not read: their blocks may be gone, and 0 * NaN is NaN.
        first = 0 if window is None else max(0, length - (stop - start) - window + 1)
        positions = torch.arange(first, length, device=query.device)
        blocks, offsets = block_table[index, positions // block_size].long(), positions % block_size
        keys, values = (plane[blocks, :, offsets].float() for plane in cache)
        q = query[start:stop].unflatten(-1, (num_kv_heads, -1, head_dim)).float()
        scores = torch.einsum("tkgd,skd->kgts", q, keys) * scale
        rows = torch.arange(length - (stop - start), length, device=query.device)
        distance = rows[:, None] - positions[None, :]
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        weights = scores.masked_fill_(hidden, float("-inf")).softmax(-1)
        out[start:stop] = torch.einsum("kgts,skd->tkgd", weights, values).flatten(1).to(out.dtype)


# --- encoders and poolers ------------------------------------------------------------------------------------


def add(x: Value, y: Value) -> Value:
    """x + y, both [T, H]."""
    return _one(current_program().call("add", (x, y), ((x.shape, x.dtype),)))


@reference
def add_reference(x: Tensor, y: Tensor, out: Tensor) -> None:
    torch.add(x, y, out=out)


def add_layer_norm(x: Value, residual: Value, weight: Value, bias: Value, *, eps: float) -> Value:
    """Layer norm (Ba et al. 2016) of each row of x + residual [T, H], times weight [H], plus bias [H]."""
    inputs = (x, residual, weight, bias)
    return _one(current_program().call("add_layer_norm", inputs, ((x.shape, x.dtype),), eps=eps))


@reference
def add_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, out: Tensor, *, eps: float
) -> None:
    total = x.float() + residual.float()
    normed = torch.nn.functional.layer_norm(total, weight.shape, weight.float(), bias.float(), eps)
    out.copy_(normed)


def activation(x: Value, *, kind: str) -> Value:
    """gelu (Hendrycks & Gimpel 2016), gelu_tanh (its approximation by tanh), relu or tanh of each element of x [T, H]."""
    return _one(current_program().call("activation", (x,), ((x.shape, x.dtype),), kind=kind))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # Written out: torch's own makes NaN of infinity where it is vectorised.
    "gelu": lambda x: x * 0.5 * (1.0 + torch.erf(x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "tanh": torch.tanh,
}


@reference
def activation_reference(x: Tensor, out: Tensor, *, kind: str) -> None:
    out.copy_(ACTIVATIONS[kind](x.float()))


def encoder_attention(
    query: Value, key: Value, value: Value, query_start: Value, *, head_dim: int, num_kv_heads: int, scale: float
) -> Value:
    """Attention in both directions: each row sees its whole sequence, which this step holds, and no other.

    query [T, heads * D], key and value [T, kv_heads * D] -> [T, heads * D]. Sequence s is rows `query_start[s] :
    query_start[s + 1]`, possibly none; rows that are nobody's are not written.
    """
    attrs = {"head_dim": head_dim, "num_kv_heads": num_kv_heads, "scale": scale}
    call = current_program().call(
        "encoder_attention", (query, key, value, query_start), ((query.shape, query.dtype),), **attrs
    )
    return _one(call)


@reference
def encoder_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start: Tensor,
    out: Tensor,
    *,
    head_dim: int,
    num_kv_heads: int,
    scale: float,
) -> None:
    starts = query_start.tolist()
    for start, stop in itertools.pairwise(starts):
        if start == stop:
            continue
        q = query[start:stop].unflatten(-1, (num_kv_heads, -1, head_dim)).float()
        k, v = (each[start:stop].unflatten(-1, (num_kv_heads, head_dim)).float() for each in (key, value))
        weights = (torch.einsum("tkgd,skd->kgts", q, k) * scale).softmax(-1)
        out[start:stop] = torch.einsum("kgts,skd->tkgd", weights, v).flatten(1).to(out.dtype)


def mean_rows(x: Value, query_start: Value) -> Value:
    """The mean of each sequence's rows of x [T, H] -> float32 [S, H]; zeros for one without rows."""
    call = current_program().call("mean_rows", (x, query_start), (((NUM_SEQS, x.shape[1]), DType.FLOAT32),))
    return _one(call)


@reference
def mean_rows_reference(x: Tensor, query_start: Tensor, out: Tensor) -> None:
    for index, (start, stop) in enumerate(itertools.pairwise(query_start.tolist())):
        out[index] = x[start:stop].float().mean(0) if stop > start else 0.0


# --- recording -----------------------------------------------------------------------------------------------


class _NothingButOps(TorchDispatchMode):
    """Raises on any tensor operation: while recording, only the functions above may stand for computation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RecordingError(
            f"a model's forward called {func} while it was being recorded; it would be computed once, now, and never "
            "again. Use the ops of core.ops, or add an op with its reference there"
        )


def record(program: OpProgram, forward: Callable[[], None]) -> OpProgram:
    """Run `forward`, whose calls of this module's ops append to `program`. Raises RecordingError on anything else."""
    with recording(program), _NothingButOps():  # type: ignore[no-untyped-call]
        forward()
    return program
