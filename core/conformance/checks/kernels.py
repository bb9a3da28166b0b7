"""Level ops: each kernel that the platform claims, against the float32 reference of the op."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core import ops
from core.conformance.bounds import FLOATS, bound, deviation
from core.conformance.buffers import Held, same_bits, untouched
from core.conformance.cases import CASES, Case, Input, Numbers, magnitudes
from core.conformance.failures import Broken, NotClaimed, expect, expect_none
from core.conformance.registry import check
from core.conformance.report import OpSupport
from core.conformance.subject import Subject
from core.defaults import torch_dtype
from core.errors import Unsupported
from core.platform import Bucket, Kernel, Platform
from core.types import DType

_WHY = {
    "embedding": "every token starts here; a wrong row is another word",
    "linear": "nearly all of a model's arithmetic is this op, at widths that are no multiple of anything",
    "select_rows": "the row that is sampled from must be the row of the sequence that asked",
    "rms_norm": "an error here enters every later layer",
    "add_rms_norm": "it carries the residual stream: what it does not store is lost to all later layers",
    "silu_mul": "gate and up lie in one tensor; taking one for the other still gives plausible numbers",
    "rope_angles": "an angle that is off at far positions shows only on long prompts",
    "rope": "pairs or signs of another convention give fluent but wrong text",
    "add": "an encoder's words, segments and positions meet here",
    "add_layer_norm": "it ends every block of an encoder; what it leaves off is missing from every embedding",
    "activation": "the tanh form of gelu for the exact one, or the reverse, is a small error in every layer",
    "encoder_attention": "a row that sees another prompt's tokens gives an embedding that depends on the batch",
    "mean_rows": "an embedding that counts padding, or a neighbour's row, is near enough that nobody looks",
}


@dataclass(frozen=True)
class _Called:
    """One call that was made on the device."""

    inputs: list[Held | None]
    outputs: list[Held]
    before: list[Tensor | None]  # the inputs, as they were


def _floats(subject: Subject) -> list[DType]:
    return [dtype for dtype in FLOATS if dtype in subject.capabilities.dtypes]


def _kernel(subject: Subject, op: str) -> Kernel:
    """The claimed kernel. Raises NotClaimed, Broken where the claim is not kept."""
    table = subject.platform.kernels()
    support = table.supports(op)
    if not support:
        subject.findings.ops.extend(
            OpSupport(op=op, dtype=str(dtype), supported=False, reason=support.reason) for dtype in _floats(subject)
        )
        raise NotClaimed(support.reason or f"there is no kernel for {op}")
    try:
        return table.get(op)
    except Unsupported as error:
        raise Broken(f"supports({op!r}) says yes and get({op!r}) raises {error}") from error


def _call(subject: Subject, kernel: Kernel, case: Case, dtype: DType, *, views: bool) -> _Called:
    buffers = subject.buffers

    def put(given: Input | None) -> Held | None:
        if given is None:
            return None
        element = given.dtype or dtype
        return buffers.put_view(given.data, element) if views and given.activation else buffers.put(given.data, element)

    inputs = [put(given) for given in case.inputs]
    outputs = [buffers.out(shape, element or dtype) for shape, element in case.outputs]
    before = [None if held is None else held.read() for held in inputs]
    handles = [None if held is None else held.handle for held in inputs]
    kernel(*handles, *(held.handle for held in outputs), **case.attrs)
    buffers.memory.synchronize()
    return _Called(inputs, outputs, before)


def _reference(op: str, case: Case, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """The op's meaning on `inputs`, floats widened to float32."""
    outputs = [torch.empty(shape, dtype=torch.float32) for shape, _ in case.outputs]
    ops.REFERENCE[op](*inputs, *outputs, **case.attrs)
    return outputs


def _widened(inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if each is None else each.float() if each.is_floating_point() else each for each in inputs]


def _calls(subject: Subject, op: str, dtype: DType) -> Iterator[tuple[str, Case, bool]]:
    """(a name for people, the case, whether activations come as views) for every shape."""
    for shape in subject.shapes():
        for case in CASES[op](Numbers(op), shape):
            for views in (False, True) if any(i and i.activation for i in case.inputs) else (False,):
                label = f"{op} {dtype}, {shape.num_tokens} tokens, {case.label}{', columns of a wider tensor' if views else ''}"
                yield label, case, views


def _check_op(subject: Subject, op: str) -> None:
    kernel, broken = _kernel(subject, op), []
    for dtype in _floats(subject):
        worst, limit = 0.0, 0.0
        try:
            for label, case, views in _calls(subject, op, dtype):
                error, allowed = _check_call(subject, op, kernel, case, dtype, label, views=views)
                worst, limit = max(worst, error), max(limit, allowed)
        except Broken as problem:
            broken.append(str(problem))
            finding = OpSupport(op=op, dtype=str(dtype), supported=True, reason=str(problem))
        else:
            finding = OpSupport(op=op, dtype=str(dtype), supported=True, worst_error=worst, bound=limit)
        subject.findings.ops.append(finding)
    expect_none(broken)


def _check_call(
    subject: Subject, op: str, kernel: Kernel, case: Case, dtype: DType, label: str, *, views: bool
) -> tuple[float, float]:
    """The error of one call and what it may be. Raises Broken beyond that, or where memory is touched."""
    try:
        called = _call(subject, kernel, case, dtype, views=views)
    except Exception as raised:  # whatever a kernel raises on a shape that it claims
        raise Broken(f"{label}: the kernel raises {type(raised).__name__}: {raised}") from raised
    inputs = _widened(called.before)
    wanted = _reference(op, case, inputs)
    limit = bound(op, dtype, case.terms)
    worst = 0.0
    for held, want, size in zip(called.outputs, wanted, magnitudes(op, inputs, case.attrs, wanted), strict=True):
        got = held.read()
        error = deviation(got, want, size, dtype)
        expect(error <= limit, f"{label}: off by {error:.3g} of its magnitude, {limit:.3g} is allowed")
        worst = max(worst, error)
    subject.tidy()
    return worst, limit


def _register(op: str) -> None:
    def run(subject: Subject) -> None:
        _check_op(subject, op)

    run.__doc__ = f"The kernel of {op} is within its bound of the reference, for every declared type, shape and view."
    check(f"kernels.{op}", "ops", _WHY.get(op, "models use it"))(run)


for _op in CASES:
    _register(_op)


# --- what holds for all of them ------------------------------------------------------------------------------


def _each_claimed(subject: Subject, examine: Callable[[str, Kernel, DType, Case, str], None]) -> None:
    """Let `examine` look at the first shapes of every claimed op in every type. Raises NotClaimed without any op."""
    claimed = [op for op in CASES if subject.platform.kernels().supports(op)]
    if not claimed:
        raise NotClaimed("no op is claimed; the platform runs models by an executor or a compiler of its own")
    shape = subject.shapes()[min(1, len(subject.shapes()) - 1)]
    for op in claimed:
        kernel = _kernel(subject, op)
        for dtype in _floats(subject):
            for case in CASES[op](Numbers(op), shape):
                examine(op, kernel, dtype, case, f"{op} {dtype}, {shape.num_tokens} tokens, {case.label}")
                subject.tidy()


@check("kernels.guards", "ops", "what lies beside an output is another layer's activation or another request's KV")
def guards(subject: Subject) -> None:
    """Nothing around an output is written."""

    def examine(op: str, kernel: Kernel, dtype: DType, case: Case, label: str) -> None:
        buffers = subject.buffers
        fresh = [buffers.out(shape, element or dtype).surroundings() for shape, element in case.outputs]
        called = _call(subject, kernel, case, dtype, views=True)
        for held, before in zip(called.outputs, fresh, strict=True):
            expect(untouched(held.surroundings(), before), f"{label}: the kernel writes outside of its output")

    _each_claimed(subject, examine)


@check("kernels.inputs", "ops", "an input is read again: by another op, by the next layer, by the next step")
def inputs(subject: Subject) -> None:
    """No input is changed."""

    def examine(op: str, kernel: Kernel, dtype: DType, case: Case, label: str) -> None:
        called = _call(subject, kernel, case, dtype, views=True)
        for index, (held, before) in enumerate(zip(called.inputs, called.before, strict=True)):
            if held is not None and before is not None:
                expect(same_bits(held.read(), before), f"{label}: the kernel writes into its input {index}")

    _each_claimed(subject, examine)


@check("kernels.nan", "ops", "a NaN that is swallowed is a broken weight or a race that nobody will ever find")
def nan(subject: Subject) -> None:
    """NaN and infinity come out where the reference has them, and nowhere else."""

    def examine(op: str, kernel: Kernel, dtype: DType, case: Case, label: str) -> None:
        poisoned = _poisoned(case)
        called = _call(subject, kernel, poisoned, dtype, views=False)
        wanted = _reference(op, poisoned, _widened(called.before))
        for held, want in zip(called.outputs, wanted, strict=True):
            got = held.read().float()
            for what, seen, due in (("NaN", got.isnan(), want.isnan()), ("infinity", got.isinf(), want.isinf())):
                message = f"{label}: {int(seen.sum())} results are {what}, {int(due.sum())} are due"
                expect(torch.equal(seen, due), message)

    _each_claimed(subject, examine)


def _poisoned(case: Case) -> Case:
    """The case with NaN in the first row of its first float tensor and infinity in the last, where there are two."""
    first = next(i for i, given in enumerate(case.inputs) if given is not None and given.data.is_floating_point())
    given = case.inputs[first]
    assert given is not None
    data = given.data.clone()
    data.view(len(data), -1)[-1, 0] = float("inf")
    data.view(len(data), -1)[0, -1] = float("nan")
    changed = (*case.inputs[:first], Input(data, given.dtype, given.activation), *case.inputs[first + 1 :])
    return Case(case.label, changed, case.outputs, case.attrs, case.terms)


@check("kernels.deterministic", "ops", "a platform that declares it lets users reproduce an answer bit by bit")
def deterministic(subject: Subject) -> None:
    """The same call gives the same bits."""
    subject.require(subject.capabilities.deterministic, "capabilities().deterministic")

    def examine(op: str, kernel: Kernel, dtype: DType, case: Case, label: str) -> None:
        first, second = (
            [held.read() for held in _call(subject, kernel, case, dtype, views=False).outputs] for _ in range(2)
        )
        expect(all(map(same_bits, first, second)), f"{label}: the same call gave other bits the second time")

    _each_claimed(subject, examine)


@check("kernels.sequences", "ops", "an embedding that changes with its neighbours in the batch cannot be compared")
def sequences(subject: Subject) -> None:
    """A sequence's rows have the same bits alone as among others, where batch invariance is declared."""
    subject.require(subject.capabilities.batch_invariant, "capabilities().batch_invariant")
    if subject.capabilities.buckets:
        raise NotClaimed("steps have fixed shapes: a sequence is never alone in one")
    claimed = [op for op in ("encoder_attention", "mean_rows") if subject.platform.kernels().supports(op)]
    if not claimed:
        raise NotClaimed("neither encoder_attention nor mean_rows is claimed")
    for op in claimed:
        for dtype in _floats(subject):
            for case in CASES[op](Numbers(op), Bucket(61, 5)):
                _check_alone(subject, op, dtype, case)


def _check_alone(subject: Subject, op: str, dtype: DType, case: Case) -> None:
    """Hold each sequence of a case, which its last input tells, against a call of its own."""
    kernel = _kernel(subject, op)
    together = _call(subject, kernel, case, dtype, views=False).outputs[0].read()
    starts = case.inputs[-1]
    assert starts is not None
    for index, (start, stop) in enumerate(itertools.pairwise(starts.data.tolist())):
        if start == stop:
            continue
        rows = [Input(given.data[start:stop], given.dtype) for given in case.inputs[:-1] if given is not None]
        own = Input(torch.tensor([0, stop - start], dtype=torch.int32), starts.dtype)
        per_token = op == "encoder_attention"
        shape, element = case.outputs[0]
        outputs = (((stop - start if per_token else 1, shape[1]), element),)
        alone = _call(subject, kernel, Case(case.label, (*rows, own), outputs, case.attrs), dtype, views=False)
        among = together[start:stop] if per_token else together[index : index + 1]
        message = f"{op} {dtype}, {case.label}: sequence {index} has other bits alone than among others"
        expect(same_bits(alone.outputs[0].read(), among), message)
        subject.tidy()


@check("kernels.unclaimed", "ops", "what is not there must say so, or --op-fallback never gets to help")
def unclaimed(subject: Subject) -> None:
    """An op that is not claimed has a reason, and get() raises Unsupported for it."""
    table = subject.platform.kernels()
    for op in [*CASES, "no_such_op"]:
        support = table.supports(op)
        if support:
            expect(op in CASES, f"supports({op!r}) says yes to an op that does not exist")
            continue
        expect(support.reason.strip(), f"supports({op!r}) says no and gives no reason")
        try:
            table.get(op)
        except Unsupported:
            continue
        except Exception as error:  # of any other kind
            raise Broken(f"get({op!r}) raises {type(error).__name__}, not Unsupported") from error
        raise Broken(f"supports({op!r}) says no and get({op!r}) gives a kernel")


@check("kernels.dtypes", "ops", "a type that is declared is chosen by --dtype auto for the models that have it")
def dtypes(subject: Subject) -> None:
    """Every declared type is a float that the device holds and the kernels compute."""
    for dtype in subject.capabilities.dtypes:
        expect(dtype in FLOATS, f"capabilities().dtypes has {dtype}, which is no float type of models")
        held = subject.buffers.put(torch.ones(3, 5), dtype)
        expect(held.read().dtype == torch_dtype(dtype), f"a {dtype} handle holds {held.read().dtype}")
    if not subject.platform.kernels().supports("linear"):
        return
    kernel, shape = _kernel(subject, "linear"), subject.shapes()[0]
    for dtype in _floats(subject):
        case = next(CASES["linear"](Numbers("dtypes"), shape))
        _check_call(subject, "linear", kernel, case, dtype, f"linear in the declared type {dtype}", views=False)


@check("floor.ops", "ops", "a backend that claims nothing passes every other check of kernels")
def floor(subject: Subject) -> None:
    """Whatever a Llama needs is claimed (encoders need more), unless an executor of the platform's own runs whole models (see floor.serve)."""
    table, backends = subject.platform.kernels(), subject.platform.attention()
    needed = [op for op in CASES if op not in ops.ENCODER_OPS]
    missing = [op for op in needed if not table.supports(op)] + ([] if backends else sorted(ops.ATTENTION_OPS))
    if missing and type(subject.platform).create_executor is not Platform.create_executor:
        raise NotClaimed("the platform has an executor of its own; floor.serve holds it to a whole model")
    expect(not missing, f"nothing is claimed for {', '.join(missing)}, which a Llama needs")
