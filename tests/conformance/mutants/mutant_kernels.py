"""Faults of kernels and of what compiles them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from mutant_faults import fault
from mutant_platform import BUCKETS, BucketExecutable, MutantPlatform
from torch import Tensor

from core import ops
from core.defaults import ReferenceKernels
from core.errors import Unsupported
from core.platform import Bindings, Bucket, Executable, Kernel, Support
from core.program import Storage
from core.types import DType

REFERENCE = ops.REFERENCE


def wrong(op: str, name: str, what: str, caught_by: str | None = None) -> Callable[[Kernel], Kernel]:
    """Register a kernel of `op` that is wrong."""

    def register(kernel: Kernel) -> Kernel:
        @fault(name, what, caught_by or f"kernels.{op}")
        def breaks(platform: MutantPlatform) -> None:
            table = platform.table
            assert isinstance(table, ReferenceKernels)
            table._kernels[op] = kernel

        return kernel

    return register


# --- positions -----------------------------------------------------------------------------------------------


@wrong("rope", "rope-sign", "RoPE rotates the other way")
def rope_sign(x: Tensor, angles: Tensor, out: Tensor, *, head_dim: int) -> None:
    half = angles.shape[1] // 2
    turned = torch.cat([angles[:, :half], -angles[:, half:]], dim=1)
    REFERENCE["rope"](x, turned, out, head_dim=head_dim)


@wrong("rope", "rope-interleaved", "RoPE pairs neighbours, as in GPT-J, not halves")
def rope_interleaved(x: Tensor, angles: Tensor, out: Tensor, *, head_dim: int) -> None:
    half = angles.shape[1] // 2
    cos, sin = angles[:, None, :half], angles[:, None, half:]
    heads, target = x.unflatten(-1, (-1, head_dim)).float(), out.unflatten(-1, (-1, head_dim))
    even, odd = heads[..., 0 : 2 * half : 2], heads[..., 1 : 2 * half : 2]
    target[..., 2 * half :] = heads[..., 2 * half :]
    target[..., 0 : 2 * half : 2] = even * cos - odd * sin
    target[..., 1 : 2 * half : 2] = odd * cos + even * sin


@wrong("rope", "rope-partial", "RoPE drops the dimensions that are not rotated")
def rope_partial(x: Tensor, angles: Tensor, out: Tensor, *, head_dim: int) -> None:
    REFERENCE["rope"](x, angles, out, head_dim=head_dim)
    out.unflatten(-1, (-1, head_dim))[..., angles.shape[1] :] = 0


@wrong("rope_angles", "angles-narrow", "angles are computed in bfloat16")
def angles_narrow(positions: Tensor, inv_freq: Tensor, out: Tensor, *, scale: float) -> None:
    REFERENCE["rope_angles"](positions.bfloat16(), inv_freq, out, scale=scale)


@wrong("rope_angles", "angles-unscaled", "the scale of YaRN's angles is ignored")
def angles_unscaled(positions: Tensor, inv_freq: Tensor, out: Tensor, *, scale: float) -> None:
    REFERENCE["rope_angles"](positions, inv_freq, out, scale=1.0)


# --- norms and activations -----------------------------------------------------------------------------------


@wrong("rms_norm", "norm-without-eps", "the norm's eps is ignored")
def norm_without_eps(x: Tensor, weight: Tensor, out: Tensor, *, eps: float) -> None:
    REFERENCE["rms_norm"](x, weight, out, eps=0.0)


@wrong("rms_norm", "norm-narrow", "the norm computes in the element type, not in float32")
def norm_narrow(x: Tensor, weight: Tensor, out: Tensor, *, eps: float) -> None:
    groups = x.unflatten(-1, (-1, weight.shape[0]))
    normed = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    out.copy_((normed * weight).flatten(-2))


@wrong("add_rms_norm", "residual-lost", "add_rms_norm does not store the residual sum")
def residual_lost(x: Tensor, residual: Tensor, weight: Tensor, normed: Tensor, total: Tensor, *, eps: float) -> None:
    REFERENCE["rms_norm"](x + residual, weight, normed, eps=eps)
    total.copy_(residual)


@wrong("silu_mul", "silu-on-up", "SiLU is taken of the second half")
def silu_on_up(gate_up: Tensor, out: Tensor) -> None:
    gate, up = gate_up.chunk(2, dim=-1)
    torch.mul(torch.nn.functional.silu(up), gate, out=out)


@wrong("silu_mul", "nan-swallowed", "NaN becomes zero", "kernels.nan")
def nan_swallowed(gate_up: Tensor, out: Tensor) -> None:
    REFERENCE["silu_mul"](gate_up, out)
    out.nan_to_num_(nan=0.0, posinf=float("inf"), neginf=float("-inf"))


@wrong("silu_mul", "writes-input", "silu_mul uses its input as scratch", "kernels.inputs")
def writes_input(gate_up: Tensor, out: Tensor) -> None:
    gate, up = gate_up.chunk(2, dim=-1)
    gate.copy_(torch.nn.functional.silu(gate))
    torch.mul(gate, up, out=out)


@wrong("silu_mul", "writes-outside", "silu_mul writes a row too many", "kernels.guards")
def writes_outside(gate_up: Tensor, out: Tensor) -> None:
    REFERENCE["silu_mul"](gate_up, out)
    beyond = out.storage_offset() + out.numel()
    out.as_strided((out.shape[1],), (1,), beyond).zero_()


# --- products and look-ups -----------------------------------------------------------------------------------


@wrong("linear", "linear-without-bias", "linear ignores its bias")
def linear_without_bias(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    REFERENCE["linear"](x, weight, None, out)


@wrong("linear", "linear-tail", "linear leaves out the columns after the last multiple of 8")
def linear_tail(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    REFERENCE["linear"](x, weight, bias, out)
    out[:, out.shape[1] // 8 * 8 :] = 0


@wrong("linear", "linear-narrow-sum", "linear adds up in the element type")
def linear_narrow_sum(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    total = torch.zeros_like(out, dtype=x.dtype)
    for k in range(x.shape[1]):
        total += x[:, k : k + 1] * weight[:, k]
    out.copy_(total if bias is None else total + bias)


@wrong("linear", "view-as-whole", "linear reads columns of a wider tensor as if they were all of it")
def view_as_whole(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    REFERENCE["linear"](x.as_strided(x.shape, (x.shape[1], 1)), weight, bias, out)


@wrong("embedding", "embedding-off-by-one", "embedding looks up the row after")
def embedding_off_by_one(token_ids: Tensor, weight: Tensor, out: Tensor) -> None:
    REFERENCE["embedding"]((token_ids + 1) % weight.shape[0], weight, out)


@wrong("select_rows", "rows-sorted", "select_rows gives the rows in ascending order")
def rows_sorted(x: Tensor, indices: Tensor, out: Tensor) -> None:
    REFERENCE["select_rows"](x, indices.sort().values, out)


@wrong(
    "linear", "nondeterministic", "linear's last bit is random, and determinism is declared", "kernels.deterministic"
)
def nondeterministic(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    REFERENCE["linear"](x, weight, bias, out)
    out *= 1 + torch.rand(out.shape) * 3e-7


@wrong("linear", "depends-on-batch", "several rows are summed in another order than one", "invariance.batch")
def depends_on_batch(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if len(x) == 1 or x.dtype is not torch.float32:
        REFERENCE["linear"](x, weight, bias, out)
    else:
        exact = x.double() @ weight.double().t()
        out.copy_(exact if bias is None else exact + bias)


# --- claims --------------------------------------------------------------------------------------------------


@fault("wrong-dtype", "float16 is declared and the kernels do not have it", "kernels.dtypes")
def wrong_dtype(platform: MutantPlatform) -> None:
    platform.declared = msgspec.structs.replace(platform.declared, dtypes=(*platform.declared.dtypes, DType.FLOAT16))

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        if x.dtype is torch.float16:
            x, weight = x.bfloat16(), weight.bfloat16()
            bias = None if bias is None else bias.bfloat16()
            out.copy_(torch.nn.functional.linear(x, weight, bias))
        else:
            REFERENCE["linear"](x, weight, bias, out)

    platform.table = ReferenceKernels({"linear": linear})


class _Table(ReferenceKernels):
    """Kernels of which `missing` are not claimed. `gives` says whether get() knows that."""

    def __init__(self, *missing: str, gives: bool = False, reason: str = "it is not written yet") -> None:
        super().__init__()
        self._missing, self._gives, self._reason = missing, gives, reason

    def supports(self, op: str) -> Support:
        return Support(False, self._reason) if op in self._missing else super().supports(op)

    def get(self, op: str) -> Kernel:
        if op in self._missing and not self._gives:
            raise Unsupported(f"op {op}", self._reason)
        return super().get(op)


@fault("claims-nothing", "nothing is claimed", "floor.ops")
def claims_nothing(platform: MutantPlatform) -> None:
    platform.table = _Table(*REFERENCE)
    platform.attention_backends = ()


@fault("claims-too-little", "an op that every model needs is not claimed", "floor.serve")
def claims_too_little(platform: MutantPlatform) -> None:
    platform.table = _Table("silu_mul")


@fault("unclaimed-given", "get() gives a kernel that supports() denies", "kernels.unclaimed")
def unclaimed_given(platform: MutantPlatform) -> None:
    platform.table = _Table("silu_mul", gives=True)


@fault("unclaimed-unexplained", "supports() says no and not why", "kernels.unclaimed")
def unclaimed_unexplained(platform: MutantPlatform) -> None:
    platform.table = _Table("silu_mul", reason="")


@fault("claim-not-kept", "supports() says yes and get() raises Unsupported", "kernels.silu_mul")
def claim_not_kept(platform: MutantPlatform) -> None:
    class Table(_Table):
        def supports(self, op: str) -> Support:
            return Support(op in REFERENCE, "there is no such op")

    platform.table = Table("silu_mul")


# --- compiled programs ---------------------------------------------------------------------------------------


class _Frozen(BucketExecutable):
    """A graph that goes on with the inputs it was first run with."""

    def __init__(self, bindings: Bindings, bucket: Bucket) -> None:
        super().__init__(bindings, bucket)
        self._inputs = [bindings.handle(value) for value in bindings.program.of(Storage.INPUT)]
        self._captured: list[Tensor] = []

    def run(self, num_tokens: int, num_seqs: int) -> None:
        if not self._captured and bool(self._inputs[0].any()):
            self._captured = [tensor.clone() for tensor in self._inputs]
        for tensor, captured in zip(self._inputs, self._captured, strict=False):
            tensor.copy_(captured)
        super().run(num_tokens, num_seqs)


@fault(
    "stale-graph", "a compiled step reads the inputs that it was captured with", "programs.fresh_inputs", kind="buckets"
)
def stale_graph(platform: MutantPlatform) -> None:
    platform.executable = lambda bindings, bucket: _Frozen(bindings, bucket or BUCKETS[-1])


@fault("padding-leaks", "rows of padding enter the real rows of a bucket", "programs.padding", kind="buckets")
def padding_leaks(platform: MutantPlatform) -> None:
    def select_rows(x: Tensor, indices: Tensor, out: Tensor) -> None:
        REFERENCE["select_rows"](x, indices, out)
        out += x.mean(0, keepdim=True) / 4

    platform.table = ReferenceKernels({"select_rows": select_rows})


@fault("bucket-refused", "a declared bucket cannot be compiled", "programs.compiled", kind="buckets")
def bucket_refused(platform: MutantPlatform) -> None:
    compiled = platform.executable

    def executable(bindings: Bindings, bucket: Bucket | None) -> Executable:
        if bucket == BUCKETS[1]:
            raise Unsupported(f"step shape {bucket}", "it does not fit the device")
        return compiled(bindings, bucket)

    platform.executable = executable


@fault(
    "buckets-not-nested", "no bucket holds the most tokens and the most sequences", "api.capabilities", kind="buckets"
)
def buckets_not_nested(platform: MutantPlatform) -> None:
    platform.declared = msgspec.structs.replace(platform.declared, buckets=(Bucket(64, 2), Bucket(8, 8)))


@fault("order-of-ops", "a compiled step runs its last op first", "programs.compiled", kind="buckets")
def order_of_ops(platform: MutantPlatform) -> None:
    class Reordered(BucketExecutable):
        def __init__(self, bindings: Bindings, bucket: Bucket) -> None:
            super().__init__(bindings, bucket)
            self.calls = [self.calls[-1], *self.calls[:-1]]

    platform.executable = lambda bindings, bucket: Reordered(bindings, bucket or BUCKETS[-1])


@fault(
    "bias-of-first-layer",
    "a compiled step gives every layer the biases of the first",
    "programs.architectures",
    kind="buckets",
)
def bias_of_first_layer(platform: MutantPlatform) -> None:
    class Shared(BucketExecutable):
        def __init__(self, bindings: Bindings, bucket: Bucket) -> None:
            first: dict[int, Any] = {}

            def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
                shared = None if bias is None else first.setdefault(len(bias), bias)
                bindings.kernels["linear"](x, weight, shared, out)

            own = Bindings(
                bindings.program, bindings.handles, bindings.arena, bindings.offsets, bindings.limits,
                {**bindings.kernels, "linear": linear},
            )  # fmt: skip
            super().__init__(own, bucket)

    platform.executable = lambda bindings, bucket: Shared(bindings, bucket or BUCKETS[-1])
