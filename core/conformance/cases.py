"""Calls of each op to hold a kernel against the reference with: odd, tiny and larger shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core import ops
from core.platform import Bucket
from core.types import DType

F32 = DType.FLOAT32
I32 = DType.INT32


@dataclass(frozen=True)
class Input:
    """One tensor argument. `dtype` None: the element type under test. `activation`: may come as columns of a wider one."""

    data: Tensor
    dtype: DType | None = None
    activation: bool = False


@dataclass(frozen=True)
class Case:
    """One call of an op. `outputs` are shapes with types (None: the element type); `terms` counts the longest sum."""

    label: str
    inputs: tuple[Input | None, ...]
    outputs: tuple[tuple[tuple[int, ...], DType | None], ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    terms: int = 1


class Numbers:
    """Reproducible random tensors."""

    def __init__(self, name: str) -> None:
        self.generator = torch.Generator().manual_seed(sum(map(ord, name)))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, none beyond 6."""
        return torch.randn(shape, generator=self.generator).clamp(-6, 6)

    def integers(self, high: int, *shape: int) -> Tensor:
        """int32 in [0, high)."""
        return torch.randint(high, shape, generator=self.generator, dtype=torch.int32)


def _embedding(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    tokens = shape.num_tokens
    for vocab, width in ((1, 1), (97, 7), (130, 64), (300, 200)):
        ids = numbers.integers(vocab, tokens)
        ids[0], ids[-1] = vocab - 1, 0
        table = Input(numbers.normal(vocab, width))
        yield Case(f"vocab {vocab}, width {width}", (Input(ids, I32), table), (((tokens, width), None),))


def _linear(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    tokens = shape.num_tokens
    for inner, outer in ((1, 1), (7, 5), (33, 17), (64, 97), (130, 48), (512, 257)):
        x, weight = Input(numbers.normal(tokens, inner), activation=True), Input(numbers.normal(outer, inner))
        for bias, out in ((None, None), (Input(3 * numbers.normal(outer)), None), (None, F32)):
            label = f"{inner} -> {outer}{', bias' if bias else ''}{', float32 out' if out else ''}"
            yield Case(label, (x, weight, bias), (((tokens, outer), out),), terms=inner + 1)


def _select_rows(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for width in (1, 7, 64, 200):
        rows = numbers.integers(shape.num_tokens, shape.num_seqs)
        rows[0] = shape.num_tokens - 1
        x = Input(numbers.normal(shape.num_tokens, width), activation=True)
        yield Case(f"width {width}", (x, Input(rows, I32)), (((shape.num_seqs, width), None),))


_NORM_SHAPES = ((1, 8), (1, 7), (4, 16), (3, 33), (1, 576), (1, 1000))
_EPS = (1e-6, 1e-5, 0.5)


def _rms_norm(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for groups, width in _NORM_SHAPES:
        for eps in _EPS:
            x = Input(numbers.normal(shape.num_tokens, groups * width), activation=True)
            weight = Input(1 + numbers.normal(width) / 4)
            label = f"{groups} of {width}, eps {eps:g}"
            outputs = (((shape.num_tokens, groups * width), None),)
            yield Case(label, (x, weight), outputs, {"eps": eps}, terms=width)


def _add_rms_norm(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for _, width in _NORM_SHAPES:
        x, residual = (Input(numbers.normal(shape.num_tokens, width)) for _ in range(2))
        weight = Input(1 + numbers.normal(width) / 4)
        outputs = (((shape.num_tokens, width), None), ((shape.num_tokens, width), None))
        yield Case(f"width {width}", (x, residual, weight), outputs, {"eps": 1e-5}, terms=width)


def _silu_mul(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for width in (1, 7, 64, 301):
        x = Input(numbers.normal(shape.num_tokens, 2 * width), activation=True)
        yield Case(f"width {width}", (x,), (((shape.num_tokens, width), None),))


def _rope_angles(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for half, scale in ((1, 1.0), (5, 1.0), (32, 1.25)):
        positions = numbers.integers(4096, shape.num_tokens)
        positions[0] = 0
        frequencies = torch.logspace(0, -4, half)
        inputs = (Input(positions, I32), Input(frequencies, F32))
        outputs = (((shape.num_tokens, 2 * half), F32),)
        yield Case(f"{half} frequencies, scale {scale:g}", inputs, outputs, {"scale": scale})


def _rope(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for heads, head_dim, rotated in ((1, 2, 2), (3, 10, 10), (4, 64, 64), (2, 32, 8), (1, 128, 128)):
        angles = 4 * numbers.normal(shape.num_tokens, rotated // 2)
        x = Input(numbers.normal(shape.num_tokens, heads * head_dim), activation=True)
        cos_sin = Input(torch.cat([angles.cos(), angles.sin()], dim=1), F32)
        outputs = (((shape.num_tokens, heads * head_dim), None),)
        yield Case(f"{heads} heads of {head_dim}, {rotated} rotated", (x, cos_sin), outputs, {"head_dim": head_dim})


# --- encoders and poolers ------------------------------------------------------------------------------------


def _sequences(numbers: Numbers, shape: Bucket) -> Input:
    """query_start of sequences that share all tokens; where there are three or more, one of them has none."""
    inner = numbers.integers(shape.num_tokens + 1, shape.num_seqs - 1).sort().values
    if len(inner) > 1:
        inner[1] = inner[0]
    ends = torch.tensor([0]), inner, torch.tensor([shape.num_tokens])
    return Input(torch.cat(ends).to(torch.int32), I32)


def _add(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for width in (1, 7, 64, 301):
        x, y = (Input(numbers.normal(shape.num_tokens, width), activation=True) for _ in range(2))
        yield Case(f"width {width}", (x, y), (((shape.num_tokens, width), None),))


def _add_layer_norm(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for width, eps in ((8, 1e-12), (7, 1e-5), (384, 1e-12), (1000, 0.5)):
        x, residual = (Input(numbers.normal(shape.num_tokens, width)) for _ in range(2))
        weight, bias = Input(1 + numbers.normal(width) / 4), Input(numbers.normal(width))
        outputs = (((shape.num_tokens, width), None),)
        yield Case(f"width {width}, eps {eps:g}", (x, residual, weight, bias), outputs, {"eps": eps}, terms=width)


def _activation(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for kind, width in (("gelu", 7), ("gelu", 301), ("gelu_tanh", 33), ("relu", 33), ("tanh", 33)):
        x = Input(numbers.normal(shape.num_tokens, width), activation=True)
        yield Case(f"{kind}, width {width}", (x,), (((shape.num_tokens, width), None),), {"kind": kind})


def _encoder_attention(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    tokens = shape.num_tokens
    for heads, kv_heads, dim, scale in ((1, 1, 8, 0.3), (12, 12, 32, 32**-0.5), (4, 2, 20, 0.25), (2, 1, 64, 0.125)):
        query = Input(numbers.normal(tokens, heads * dim), activation=True)
        key, value = (Input(numbers.normal(tokens, kv_heads * dim), activation=True) for _ in range(2))
        attrs = {"head_dim": dim, "num_kv_heads": kv_heads, "scale": scale}
        inputs = (query, key, value, _sequences(numbers, shape))
        label = f"{heads}/{kv_heads} heads of {dim}"
        yield Case(label, inputs, (((tokens, heads * dim), None),), attrs, terms=tokens + 8 * dim)


def _mean_rows(numbers: Numbers, shape: Bucket) -> Iterator[Case]:
    for width in (1, 7, 384):
        inputs = (Input(numbers.normal(shape.num_tokens, width)), _sequences(numbers, shape))
        yield Case(f"width {width}", inputs, (((shape.num_seqs, width), F32),), terms=shape.num_tokens)


#: Every op of `core.ops.REFERENCE` but attention's, which core.conformance.checks.attention calls.
CASES: dict[str, Callable[[Numbers, Bucket], Iterator[Case]]] = {
    "embedding": _embedding,
    "linear": _linear,
    "select_rows": _select_rows,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "silu_mul": _silu_mul,
    "rope_angles": _rope_angles,
    "rope": _rope,
    "add": _add,
    "add_layer_norm": _add_layer_norm,
    "activation": _activation,
    "encoder_attention": _encoder_attention,
    "mean_rows": _mean_rows,
}


def magnitudes(
    op: str, inputs: Sequence[Tensor | None], attrs: dict[str, Any], wanted: Sequence[Tensor]
) -> list[Tensor]:
    """What each output's rounding scales with (core.conformance.bounds), from the inputs in float32."""
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    assert first is not None
    if op == "linear" and second is not None:
        bias = inputs[2]
        return [first.abs() @ second.abs().t() + (0.0 if bias is None else bias.abs())]
    if op == "rope_angles" and second is not None:
        return [1 + torch.outer(first.float(), second).abs().repeat(1, 2)]
    if op == "rope" and second is not None:
        return [_pair_lengths(first.unflatten(-1, (-1, attrs["head_dim"])), second.shape[1] // 2)]
    if op in ops.ENCODER_OPS:
        return [_encoder_magnitude(op, [each for each in inputs if each is not None], attrs, wanted[0])]
    return [each.abs() for each in wanted]


def _encoder_magnitude(op: str, inputs: Sequence[Tensor], attrs: dict[str, Any], wanted: Tensor) -> Tensor:
    first = inputs[0]
    if op == "add":
        return first.abs() + inputs[1].abs()
    if op == "add_layer_norm":
        total = first + inputs[1]
        spread = (total.var(-1, correction=0, keepdim=True) + attrs["eps"]).sqrt()
        size: Tensor = (total.abs() + total.abs().mean(-1, keepdim=True)) / spread
        return size * inputs[2].abs() + inputs[3].abs()
    if op == "encoder_attention":
        return inputs[2].abs().max().expand_as(wanted)  # weights add up to one
    if op == "mean_rows":
        means = torch.empty_like(wanted)
        ops.REFERENCE[op](first.abs(), inputs[1], means)
        return means
    return first.abs()


def _pair_lengths(heads: Tensor, half: int) -> Tensor:
    """A rotated pair's length, for both of it; what passes through is itself. [T, heads, D] -> [T, heads * D]."""
    lengths = heads.abs()
    lengths[..., :half] = torch.hypot(heads[..., :half], heads[..., half : 2 * half])
    lengths[..., half : 2 * half] = lengths[..., :half]
    return lengths.flatten(1)
