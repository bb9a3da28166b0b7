"""A platform that keeps the whole contract, from the contract's own defaults, in parts that can be broken one by one.

It declares all that can be declared. Every row is computed alone, so that answers are equal bit by bit whatever shares
the batch: slow, and plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from core import ops
from core.config import Config, ParallelConfig
from core.defaults import EagerExecutable, ReferenceAttention, ReferenceKernels, TorchMemory, bind_step
from core.errors import Unsupported
from core.logits import LogitsKernels, ReferenceLogits
from core.platform import (
    AttentionBackend,
    Bindings,
    Bucket,
    Capabilities,
    DeviceInfo,
    Executable,
    Executor,
    Kernel,
    KernelTable,
    MemoryBackend,
    MemoryInfo,
    Override,
    Plan,
    Platform,
)
from core.quantization import SCHEMES
from core.types import DType

DTYPES = (DType.FLOAT32, DType.BFLOAT16)
BUCKETS = (Bucket(1, 1), Bucket(8, 4), Bucket(64, 8))
TOTAL = 1 << 30
KV_BYTES = 64 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """One row after the other, copied: a library's sums may depend on where a row lies in memory."""
    for row, target in zip(x.split(1), out.split(1), strict=True):
        ops.linear_reference(row.clone(), weight, bias, target)


class RowAttention(ReferenceAttention):
    """Each row as a sequence of its own, which ends at the row's position."""

    name = "rows"

    def forward(
        self,
        query: Tensor,
        cache: Sequence[Tensor],
        block_table: Tensor,
        query_start: Tensor,
        seq_lens: Tensor,
        out: Tensor,
        **attrs: Any,
    ) -> None:
        counts = query_start.diff().long()
        rows = int(counts.sum())
        owner = torch.repeat_interleave(torch.arange(len(seq_lens)), counts)
        lengths = seq_lens[owner] - query_start[1:][owner] + torch.arange(rows) + 1
        starts = torch.arange(rows + 1)
        self.attend(query[:rows], cache, block_table[owner], starts, lengths, out[:rows], **attrs)

    def attend(self, *args: Any, **attrs: Any) -> None:
        """Attention of sequences of one row each."""
        ops.attention_reference(*args, **attrs)


class BucketExecutable(Executable):
    """One shape, bound when it is compiled."""

    def __init__(self, bindings: Bindings, bucket: Bucket) -> None:
        self.bucket = bucket
        self.calls = bind_step(bindings, bucket.num_tokens, bucket.num_seqs)

    def run(self, num_tokens: int, num_seqs: int) -> None:
        if Bucket(num_tokens, num_seqs) != self.bucket:
            raise Unsupported(f"a step of {num_tokens} tokens, {num_seqs} sequences", f"this is for {self.bucket}")
        for call in self.calls:
            call()


class Memory(TorchMemory):
    """A GiB of the host's memory. `lost` bytes are taken by nobody."""

    def __init__(self) -> None:
        super().__init__("cpu", self._left)
        self.lost = 0

    def _left(self) -> MemoryInfo:
        return MemoryInfo(TOTAL, TOTAL - sum(self.in_use().values()) - self.lost)


class MutantPlatform(Platform):
    """Its parts are attributes; a fault replaces some of them."""

    def __init__(self, *, buckets: bool = False) -> None:
        torch.set_num_threads(1)
        self.declared = Capabilities(
            dtypes=DTYPES,
            kv_dtypes=DTYPES,
            buckets=BUCKETS if buckets else (),
            deterministic=True,
            batch_invariant=True,
            kv_transfer=True,
            quantization=SCHEMES,
        )
        self.memory_backend: MemoryBackend = Memory()
        self.table: KernelTable = ReferenceKernels({"linear": linear})
        self.choosing: LogitsKernels | None = ReferenceLogits()
        self.attention_backends: tuple[AttentionBackend, ...] = (RowAttention(),)
        self.settle: Callable[[Config], Plan] = self._settle
        self.executable: Callable[[Bindings, Bucket | None], Executable] = _executable

    def devices(self) -> Sequence[DeviceInfo]:
        return (DeviceInfo(index=0, name="a device of the host's memory", memory_bytes=TOTAL),)

    def capabilities(self) -> Capabilities:
        return self.declared

    def plan(self, config: Config) -> Plan:
        return self.settle(config)

    def memory(self) -> MemoryBackend:
        return self.memory_backend

    def kernels(self) -> KernelTable:
        return self.table

    def attention(self) -> Sequence[AttentionBackend]:
        return self.attention_backends

    def logits_kernels(self) -> LogitsKernels | None:
        return self.choosing

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable:
        return self.executable(bindings, bucket)

    def _settle(self, config: Config) -> Plan:
        """Types that are declared, a size for the KV cache, and steps that fit the largest bucket."""
        overrides: list[Override] = []
        model, cache, scheduler, options = config.model, config.cache, config.scheduler, config.options
        if options.dtype == "auto" and model.dtype not in self.declared.dtypes:
            model = msgspec.structs.replace(model, dtype=DType.BFLOAT16)
            overrides.append(
                Override(option="dtype", value="bfloat16", reason=f"there is no {config.model.dtype} here")
            )
        if options.kv_cache_dtype == "auto":
            cache = msgspec.structs.replace(cache, dtype=model.dtype)
        for dtype in (model.dtype, cache.dtype):
            if dtype not in self.declared.dtypes:
                raise Unsupported(f"--dtype {dtype}", f"there are {', '.join(self.declared.dtypes)}")
        if cache.memory_bytes is None:
            cache = msgspec.structs.replace(cache, memory_bytes=KV_BYTES)
            overrides.append(Override(option="kv_cache_memory", value=str(KV_BYTES), reason="enough for tiny models"))
        for option, most in (
            ("max_num_seqs", BUCKETS[-1].num_seqs),
            ("max_num_batched_tokens", BUCKETS[-1].num_tokens),
        ):
            if self.declared.buckets and getattr(scheduler, option) > most:
                if getattr(options, option) is not None:
                    raise Unsupported(f"{option} {getattr(options, option)}", f"the largest step is {BUCKETS[-1]}")
                scheduler = msgspec.structs.replace(scheduler, **{option: most})
                overrides.append(Override(option=option, value=str(most), reason=f"the largest step is {BUCKETS[-1]}"))
        planned = msgspec.structs.replace(config, model=model, cache=cache, scheduler=scheduler)
        return Plan(config=planned, overrides=tuple(overrides))


class TwoDevices(MutantPlatform):
    """Says that it splits models over two devices, and computes them on one: nobody can tell."""

    def __init__(self, *, buckets: bool = False) -> None:
        super().__init__(buckets=buckets)
        self.declared = msgspec.structs.replace(self.declared, max_parallel_size=2)
        self.split_kernel: Kernel | None = None  # of `linear`, where two devices share it

    def devices(self) -> Sequence[DeviceInfo]:
        (first,) = super().devices()
        return (first, msgspec.structs.replace(first, index=1))

    def create_executor(self, plan: Plan) -> Executor:
        if plan.config.parallel.world_size == self.declared.max_parallel_size:
            if self.split_kernel is not None:
                self.table = ReferenceKernels({"linear": self.split_kernel})
            plan = Plan(
                config=msgspec.structs.replace(plan.config, parallel=ParallelConfig()), overrides=plan.overrides
            )
        return super().create_executor(plan)


def _executable(bindings: Bindings, bucket: Bucket | None) -> Executable:
    return EagerExecutable(bindings) if bucket is None else BucketExecutable(bindings, bucket)
