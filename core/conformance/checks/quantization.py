"""Level ops: weights that are kept quantised, in each scheme that is declared.

A scheme says how far a weight may read from what was put there; the kernels are held against what it reads as. They
may quantise activations to eight bits as well, by row or by 32 inputs of a row, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core import ops
from core.conformance.bounds import ROUNDINGS, UNIT
from core.conformance.buffers import Held, same_bits
from core.conformance.cases import Numbers
from core.conformance.failures import Broken, expect
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.defaults import torch_dtype
from core.platform import ONLINE_SCHEMES, QuantizedRows
from core.quantization import BLOCK_SCHEMES, block_inputs, dequantized
from core.types import DType

#: Outputs and blocks of inputs: one, odd ones, more than a tile of either.
_SHAPES = ((1, 1), (17, 3), (33, 2), (130, 5))
_GROUP = 32

#: Where a block type has its float16 scales, which cannot be any bits: bytes of a block.
_SCALES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q4_k": (0, 2), "q5_k": (0, 2),
    "q6_k": (208,),
}  # fmt: skip
_BLOCK_BYTES = {
    "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34, "q4_k": 144, "q5_k": 176, "q6_k": 210,
}  # fmt: skip
#: Types that may be kept as eight bits with a scale for each 32 inputs.
_REPACKED = ("q5_0", "q5_1", "q5_k", "q6_k")


def _declared(subject: Subject, schemes: Sequence[str]) -> list[str]:
    declared = [scheme for scheme in schemes if scheme in subject.capabilities.quantization]
    subject.require(declared, f"none of {', '.join(schemes)}")
    return declared


def _width(scheme: str, blocks: int) -> int:
    """int8 takes any number of inputs, odd ones too."""
    return 29 * blocks if scheme == "int8" else block_inputs(scheme) * blocks


def _grouped(values: Tensor, size: int) -> Tensor:
    """[rows, inputs] as [rows, groups, size], the last group filled up with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % size))
    return padded.view(len(values), -1, size)


def _each_group(values: Tensor, size: int, per_group: Tensor) -> Tensor:
    """[rows, groups] spread over the inputs of each group."""
    return per_group.repeat_interleave(size, 1)[:, : values.shape[1]]


def _loss(scheme: str, values: Tensor, dtype: DType) -> Tensor:
    """How far each weight may read from its value: half a step of the scheme, with its scales and itself rounded.

    Scales are rounded to float16 at worst, 2^-11; four such roundings are allowed for, of the largest magnitude.
    """
    size = values.shape[1] if scheme == "int8" else _GROUP
    largest = _each_group(values, size, _grouped(values.abs(), size).amax(2))
    if scheme == "int4":
        groups = _grouped(values, size)
        step = _each_group(values, size, groups.amax(2) - groups.amin(2)) / 15
    else:
        step = largest / 127 if scheme == "int8" or scheme in _REPACKED else torch.zeros(())
    return step / 2 + (4 * 2.0**-11 + 2 * UNIT[dtype]) * largest + 2.0**-20


def _alloc(subject: Subject, shape: tuple[int, int], dtype: DType, parts: Sequence[QuantizedRows]) -> Held:
    memory = subject.buffers.memory
    before, size = memory.in_use().get("weights", 0), memory.quantized_size(shape, dtype, parts)
    handle = subject.buffers.keep(memory.alloc_quantized(shape, dtype, parts))
    grown = memory.in_use().get("weights", 0) - before
    schemes = [part.scheme for part in parts]
    expect(grown == size, f"alloc_quantized({list(shape)}, {schemes}) took {grown} bytes, quantized_size() says {size}")
    return Held(memory, handle, slice(None), None)


def _floats(subject: Subject) -> list[DType]:
    return [dtype for dtype in UNIT if dtype in subject.capabilities.dtypes]


def _weight(subject: Subject, scheme: str, outputs: int, blocks: int, dtype: DType) -> tuple[Held, Tensor]:
    """A filled weight in one scheme, and the values that were put there."""
    held = _alloc(subject, (outputs, _width(scheme, blocks)), dtype, [QuantizedRows(outputs, scheme)])
    return held, _fill(subject, held, scheme, outputs, blocks)


def _fill(subject: Subject, held: Held, scheme: str, outputs: int, blocks: int, row: int = 0) -> Tensor:
    """Fill rows from `row` on, the last of them first. Gives the values."""
    memory, numbers = subject.buffers.memory, Numbers(f"{scheme}{outputs}")
    pieces = [slice(0, outputs)] if outputs == 1 else [slice(outputs // 2, outputs), slice(0, outputs // 2)]
    if scheme in ONLINE_SCHEMES:
        values = numbers.normal(outputs, _width(scheme, blocks)) / 16
        for piece in pieces:
            memory.upload(held.whole, values[piece], row=row + piece.start)
        return values
    data = _blocks(numbers, scheme, outputs, blocks)
    for piece in pieces:
        memory.upload_blocks(held.whole, data[piece], scheme, row=row + piece.start)
    return dequantized(data, scheme)


def _blocks(numbers: Numbers, scheme: str, outputs: int, blocks: int) -> Tensor:
    """Random codes with scales of a model's size: uint8 [outputs, bytes of a row]."""
    data = numbers.integers(256, outputs, blocks, _BLOCK_BYTES[scheme]).to(torch.uint8)
    for place in _SCALES[scheme]:
        scale = (0.002 + numbers.normal(outputs, blocks, 1).abs() / 1000).half()
        data[..., place : place + 2] = scale.view(torch.uint8)
    return data.flatten(1)


@check("quantization.online", "ops", "what a scheme loses must be what the documentation says, not more")
def online(subject: Subject) -> None:
    """A float weight that is uploaded in an online scheme reads as itself within half a step, whole or in rows."""
    _check_reads(subject, _declared(subject, ONLINE_SCHEMES))


@check("quantization.blocks", "ops", "a file's blocks must mean here what they mean where the file was made")
def blocks(subject: Subject) -> None:
    """Blocks of a GGUF type read as the core dequantises them, within the rounding of their scales, or of eight bits."""
    _check_reads(subject, _declared(subject, BLOCK_SCHEMES))


def _check_reads(subject: Subject, schemes: Sequence[str]) -> None:
    for scheme in schemes:
        for dtype in _floats(subject):
            for outputs, count in _SHAPES:
                held, values = _weight(subject, scheme, outputs, count, dtype)
                excess = ((held.read().float() - values).abs() / _loss(scheme, values, dtype)).max()
                label = f"{scheme} as {dtype}, {outputs} outputs of {values.shape[1]}"
                expect(bool(excess <= 1), f"{label}: reads {float(excess):.3g} times as far off as the scheme allows")
                subject.tidy()


@check("quantization.misfit", "ops", "rows that go elsewhere are another layer's weights")
def misfit(subject: Subject) -> None:
    """Rows that do not fit raise ValueError, and nothing is written."""
    memory = subject.buffers.memory
    for scheme in _declared(subject, (*ONLINE_SCHEMES, *BLOCK_SCHEMES)):
        held, values = _weight(subject, scheme, 16, 2, subject.dtype)
        before = held.read()
        try:
            if scheme in ONLINE_SCHEMES:
                memory.upload(held.whole, values, row=1)
            else:
                memory.upload_blocks(held.whole, _blocks(Numbers(scheme), scheme, 16, 2), scheme, row=1)
        except ValueError:
            expect(same_bits(held.read(), before), f"{scheme}: an upload that does not fit wrote all the same")
        else:
            raise Broken(f"{scheme}: an upload of 16 rows to rows 1 … of 16 raised no ValueError")
        subject.tidy()


# --- products ------------------------------------------------------------------------------------------------


def _layouts(schemes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each scheme alone; all that share a width stacked, with a part that is not quantised."""
    yield from ((scheme,) for scheme in schemes)
    stacked = [scheme for scheme in schemes if scheme != "int8"]
    if len(stacked) > 1:
        yield (*stacked, "")


def _stacked(subject: Subject, layout: Sequence[str], dtype: DType) -> Held:
    """A weight whose parts have these schemes, "" for none, each with its own odd number of rows."""
    rows = [17 + 2 * place for place in range(len(layout))]
    width = max(_width(scheme, 2) for scheme in layout if scheme)
    parts = [QuantizedRows(count, scheme or None) for count, scheme in zip(rows, layout, strict=True)]
    held = _alloc(subject, (sum(rows), width), dtype, parts)
    row = 0
    for count, scheme in zip(rows, layout, strict=True):
        if scheme:
            _fill(subject, held, scheme, count, width // _width(scheme, 1), row)
        else:
            subject.buffers.memory.upload(held.whole, Numbers("none").normal(count, width) / 16, row=row)
        row += count
    return held


def _product(subject: Subject, x: Tensor, weight: Held, bias: Held | None, dtype: DType) -> Tensor:
    buffers, outputs = subject.buffers, len(weight.read())
    out = buffers.out((len(x), outputs), dtype)
    kernel = subject.platform.kernels().get("linear")
    kernel(buffers.put_view(x, dtype).handle, weight.handle, bias.handle if bias else None, out.handle)
    return out.read().float()


def _linear_loss(x: Tensor, weight: Tensor, layout: Sequence[str], dtype: DType) -> Tensor:
    """How far each product may be off: half a step of eight-bit activations, by row or group, beside linear's bound."""
    size = x.shape[1] if layout == ("int8",) else _GROUP
    step = _each_group(x, size, _grouped(x.abs(), size).amax(2)) / 127
    terms = x.shape[1] + 1
    exact = 1.01 * ROUNDINGS["linear"] * UNIT[dtype] + 4 * terms * UNIT[DType.FLOAT32]
    return 1.01 * (step / 2) @ weight.abs().t() + exact * (x.abs() @ weight.abs().t() + 1)


@check("quantization.products", "ops", "nearly all of a quantised model's arithmetic is this, in parts of many schemes")
def products(subject: Subject) -> None:
    """linear and embedding on a quantised weight give what its values give, activations of eight bits being allowed."""
    schemes = _declared(subject, (*ONLINE_SCHEMES, *BLOCK_SCHEMES))
    for dtype in _floats(subject):
        for layout in _layouts(schemes):
            for shape in subject.shapes():
                weight = _stacked(subject, layout, dtype)
                label = f"{'+'.join(scheme or 'none' for scheme in layout)} as {dtype}, {shape.num_tokens} tokens"
                _check_linear(subject, weight, layout, shape.num_tokens, dtype, label)
                _check_embedding(subject, weight, shape.num_tokens, dtype, label)
                subject.tidy()


def _check_linear(subject: Subject, weight: Held, layout: Sequence[str], tokens: int, dtype: DType, label: str) -> None:
    values, numbers = weight.read().float(), Numbers(label)
    x = numbers.normal(tokens, values.shape[1]).to(torch_dtype(dtype)).float()
    bias = subject.buffers.put(numbers.normal(len(values)), dtype)
    for given in (None, bias):
        wanted = torch.empty(tokens, len(values))
        ops.REFERENCE["linear"](x, values, given.read().float() if given else None, wanted)
        error = (_product(subject, x, weight, given, dtype) - wanted).abs()
        allowed = _linear_loss(x, values, layout, dtype) + (4 * UNIT[dtype] * wanted.abs())
        excess = float((error / allowed).max())
        expect(excess <= 1, f"linear on {label}: {excess:.3g} times as far off as is allowed")


def _check_embedding(subject: Subject, weight: Held, tokens: int, dtype: DType, label: str) -> None:
    values = weight.read()
    ids = Numbers(label).integers(len(values), tokens)
    out = subject.buffers.out((tokens, values.shape[1]), dtype)
    subject.platform.kernels().get("embedding")(subject.buffers.put(ids, DType.INT32).handle, weight.handle, out.handle)
    wanted = values[ids.long()].to(torch_dtype(dtype))
    expect(same_bits(out.read(), wanted), f"embedding on {label} gives other rows than download()")


@check("quantization.batch", "ops", "a request's tokens must not change with the company that its rows have")
def batch(subject: Subject) -> None:
    """Where batch_invariant is declared, a row of linear on a quantised weight is bit-equal alone and among others."""
    schemes = _declared(subject, (*ONLINE_SCHEMES, *BLOCK_SCHEMES))
    subject.require(subject.capabilities.batch_invariant, "batch_invariant")
    largest, smallest = subject.shapes()[-1].num_tokens, subject.shapes()[0].num_tokens
    for dtype in _floats(subject):
        for layout in _layouts(schemes):
            weight = _stacked(subject, layout, dtype)
            x = Numbers("batch").normal(largest, len(weight.read()[0]))
            together = _product(subject, x, weight, None, dtype)
            for row in {0, 1, largest // 2, largest - 1}:
                few = x[row : row + 1].expand(smallest, -1).contiguous()
                alone = _product(subject, few, weight, None, dtype)[0]
                label = f"{'+'.join(scheme or 'none' for scheme in layout)} as {dtype}"
                expect(same_bits(alone, together[row]), f"{label}: row {row} of {largest} is not what it is alone")
            subject.tidy()
