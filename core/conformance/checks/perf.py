"""Level perf: figures for the report. They are told, never judged: speed is for benchmarks and their readers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from core.conformance.cases import Input, Numbers
from core.conformance.checkpoints import prompts
from core.conformance.failures import expect
from core.conformance.registry import check
from core.conformance.report import Figure
from core.conformance.subject import Subject
from core.types import SamplingParams

_SECONDS = 0.3
_INNER, _OUTER = 1024, 1024


def _told(subject: Subject, name: str, value: float, unit: str) -> None:
    expect(math.isfinite(value) and value > 0, f"{name} came out as {value}")
    subject.findings.figures.append(Figure(name=name, value=value, unit=unit))


def _seconds(subject: Subject, call: Callable[[], None]) -> float:
    """Seconds of one call, the least of many."""
    best, end = math.inf, time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        subject.buffers.memory.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


@check("perf.linear", "perf", "matrix products are most of a model's time")
def linear(subject: Subject) -> None:
    """Arithmetic of one matrix product, for the step shapes there are."""
    table = subject.platform.kernels()
    subject.require(table.supports("linear"), "a kernel of linear")
    kernel = table.get("linear")
    for dtype in subject.capabilities.dtypes:
        for shape in sorted({min(subject.shapes()), max(subject.shapes())}):
            numbers = Numbers("perf")
            x = subject.buffers.put(numbers.normal(shape.num_tokens, _INNER), dtype)
            weight = subject.buffers.put(numbers.normal(_OUTER, _INNER), dtype, "weights")
            out = subject.buffers.out((shape.num_tokens, _OUTER), dtype)
            handles = (x.handle, weight.handle, None, out.handle)
            seconds = _seconds(subject, lambda handles=handles: kernel(*handles))  # type: ignore[misc]
            operations = 2 * shape.num_tokens * _INNER * _OUTER
            name = f"linear {dtype}, {shape.num_tokens} x {_INNER} x {_OUTER}"
            _told(subject, name, operations / seconds / 1e9, "GFLOP/s")
            subject.tidy()


@check("perf.bandwidth", "perf", "norms and activations move memory and compute little")
def bandwidth(subject: Subject) -> None:
    """Bytes that an elementwise op reads and writes."""
    table = subject.platform.kernels()
    subject.require(table.supports("silu_mul"), "a kernel of silu_mul")
    kernel, shape = table.get("silu_mul"), max(subject.shapes())
    for dtype in subject.capabilities.dtypes:
        given = Input(Numbers("perf").normal(shape.num_tokens, 2 * _INNER))
        x = subject.buffers.put(given.data, dtype)
        out = subject.buffers.out((shape.num_tokens, _INNER), dtype)
        handles = (x.handle, out.handle)
        seconds = _seconds(subject, lambda handles=handles: kernel(*handles))  # type: ignore[misc]
        moved = 3 * shape.num_tokens * _INNER * dtype.itemsize
        _told(subject, f"silu_mul {dtype}, {shape.num_tokens} x {_INNER}", moved / seconds / 1e9, "GB/s")
        subject.tidy()


@check("perf.decode", "perf", "tokens a second of a tiny model are what a step costs beside its arithmetic")
def decode(subject: Subject) -> None:
    """Tokens a second of the tiny Llama, alone and eight together."""
    with subject.llm(max_num_seqs=8) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
        for count in (1, 8):
            asked = [prompt[:8] or prompt for prompt in prompts(count, 8)]
            llm.generate(asked, params)
            started = time.perf_counter()
            llm.generate(asked, params)
            tokens = count * 64 / (time.perf_counter() - started)
            _told(subject, f"tiny llama, {count} at once", tokens, "tokens/s")
