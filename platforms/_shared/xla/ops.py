"""The op table as functions of torch tensors, for a compiler: static shapes, nothing read back, no branch on data.

`COMPUTE[op]` takes an op's inputs and gives its outputs as new tensors, which is what a traced program calls.
`KERNELS[op]` writes them into the outputs it is given, as the contract has it. torch_xla turns such a copy into
nothing. The meaning of each op is that of `core.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from core.ops import ACTIVATIONS
from core.platform import Kernel

#: An op's inputs and attributes -> its output, or its outputs.
Compute = Callable[..., Tensor | tuple[Tensor, ...]]


def _embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    return torch.index_select(weight, 0, token_ids)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, bias)


def _select_rows(x: Tensor, indices: Tensor) -> Tensor:
    return torch.index_select(x, 0, indices)


def _rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    groups = x.float().reshape(x.shape[0], -1, weight.shape[0])
    normed = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    return (normed.to(x.dtype) * weight).reshape(x.shape)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _rms_norm(total, weight, eps=eps), total


def _silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _rope_angles(positions: Tensor, inv_freq: Tensor, *, scale: float) -> Tensor:
    angles = positions.float()[:, None] * inv_freq[None, :]
    return torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1) * scale


def _rope(x: Tensor, angles: Tensor, *, head_dim: int) -> Tensor:
    half = angles.shape[1] // 2
    cos, sin = angles[:, None, :half], angles[:, None, half:]
    heads = x.reshape(x.shape[0], -1, head_dim)
    first, second, rest = heads[..., :half].float(), heads[..., half : 2 * half].float(), heads[..., 2 * half :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1).reshape(x.shape)


# --- encoders and poolers ------------------------------------------------------------------------------------


def _add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    total = x.float() + residual.float()
    return functional.layer_norm(total, list(weight.shape), weight.float(), bias.float(), eps).to(x.dtype)


def _activation(x: Tensor, *, kind: str) -> Tensor:
    wide = x.float()
    made = ACTIVATIONS[kind](wide)
    if kind == "gelu":  # XLA's erf stops short of -1, so that infinity is left where the reference has 0 * infinity
        made = torch.where(wide == -math.inf, math.nan, made)
    return made.to(x.dtype)


def _owners(num_tokens: int, query_start: Tensor) -> Tensor:
    """The sequence of each row [T]; rows that are nobody's have the number after the last."""
    rows = torch.arange(num_tokens, device=query_start.device)
    return (rows[:, None] >= query_start[1:][None, :]).sum(1)


def _encoder_attention(
    query: Tensor, key: Tensor, value: Tensor, query_start: Tensor, *, head_dim: int, num_kv_heads: int, scale: float
) -> Tensor:
    """Every row with every other, and what is another sequence's masked out: encoders' steps are short."""
    owners = _owners(query.shape[0], query_start)
    hidden = owners[:, None] != owners[None, :]
    heads = query.float().reshape(query.shape[0], num_kv_heads, -1, head_dim)
    keys, values = (each.float().reshape(each.shape[0], num_kv_heads, head_dim) for each in (key, value))
    scores = torch.einsum("tkgd,skd->kgts", heads, keys) * scale
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("kgts,skd->tkgd", weights, values).reshape(query.shape).to(query.dtype)


def _mean_rows(x: Tensor, query_start: Tensor) -> Tensor:
    sequences = torch.arange(query_start.shape[0] - 1, device=x.device)
    own = sequences[:, None] == _owners(x.shape[0], query_start)[None, :]
    # Summed under a mask and not multiplied by it: another sequence's NaN stays there.
    sums = torch.where(own[:, :, None], x.float()[None, :, :], 0.0).sum(1)
    return sums / own.sum(1, keepdim=True).clamp(min=1)


COMPUTE: dict[str, Compute] = {
    "embedding": _embedding,
    "linear": _linear,
    "select_rows": _select_rows,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "silu_mul": _silu_mul,
    "rope_angles": _rope_angles,
    "rope": _rope,
    "add": torch.add,
    "add_layer_norm": _add_layer_norm,
    "activation": _activation,
    "encoder_attention": _encoder_attention,
    "mean_rows": _mean_rows,
}
_OUTPUTS = {"add_rms_norm": 2}  # of the others: one


def _write(op: str, *operands: Any, **attrs: Any) -> None:
    count = _OUTPUTS.get(op, 1)
    inputs, outputs = operands[:-count], operands[-count:]
    made = COMPUTE[op](*inputs, **attrs)
    for target, value in zip(outputs, made if isinstance(made, tuple) else (made,), strict=True):
        target.copy_(value)


KERNELS: dict[str, Kernel] = {op: partial(_write, op) for op in COMPUTE}
