"""Simulated hardware as a platform: any device of which there is a profile."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from core.clock import MonotonicClock, VirtualClock
from core.config import GIB, Config
from core.errors import OutOfDeviceMemory, Unsupported
from core.platform import (
    AttentionBackend,
    Capabilities,
    DeviceInfo,
    Executor,
    KernelTable,
    MemoryBackend,
    Override,
    Plan,
    Platform,
)
from core.recording import record_model
from core.types import DType
from platforms.sim.executor import SimExecutor
from platforms.sim.kernels import RooflineAttention, RooflineKernels
from platforms.sim.memory import SimMemory, plan_memory
from platforms.sim.plugin import devices
from platforms.sim.profile import Profile

#: Steps as accelerators like them, where the user leaves it open.
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 8192

#: All of a distribution's mass lies on one token here, which no temperature, filter or finite penalty moves. A bias is
#: meant to move it, and its logprobs would tell nothing.
SAMPLING = (
    "temperature", "seed", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "min_tokens",
)  # fmt: skip

_PREFERRED = (DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32)


class SimPlatform(Platform):
    """The devices of a profile. With `virtual`, time passes only as the executor counts it."""

    def __init__(self, profile: Profile, *, virtual: bool) -> None:
        self.max_in_flight = profile.max_in_flight
        self.clock = VirtualClock() if virtual else MonotonicClock()
        self._profile = profile
        self._memory = SimMemory(profile)
        self._kernels = RooflineKernels(profile, self.clock)
        self._attention = RooflineAttention(profile, self.clock)

    def devices(self) -> Sequence[DeviceInfo]:
        """As many as the link joins."""
        return devices(self._profile)

    def capabilities(self) -> Capabilities:
        """The types that the profile has a peak for; any step shape. Tokens are exact, whatever the batch."""
        dtypes = tuple(dtype for dtype in _PREFERRED if dtype in self._profile.peak_flops)
        return Capabilities(
            dtypes=dtypes,
            kv_dtypes=dtypes,
            max_parallel_size=self._profile.max_devices,
            deterministic=True,
            batch_invariant=True,
            sampling=SAMPLING,
        )

    def memory(self) -> MemoryBackend:
        """Of one of the devices that share the model: they hold the same."""
        return self._memory

    def kernels(self) -> KernelTable:
        """Kernels that take time."""
        return self._kernels

    def attention(self) -> Sequence[AttentionBackend]:
        """The same."""
        return (self._attention,)

    def create_executor(self, plan: Plan) -> Executor:
        """One that stands for all devices that share the model."""
        return SimExecutor(plan.config, record_model(plan.config), self._profile, self._memory, self.clock)

    # --- planning ---

    def plan(self, config: Config) -> Plan:
        """Settle types, step limits and the KV cache. Raises Unsupported, and OutOfDeviceMemory where weights do not fit."""
        if config.model.pooler is not None:
            raise Unsupported(
                "a model that pools", "the simulation gives tokens and no vectors; serve one that generates"
            )
        self._check_parallel(config)
        overrides: list[Override] = []
        config = self._with_dtypes(config, overrides)
        config = _with_limits(config, overrides)
        return Plan(config=self._with_kv_memory(config, overrides), overrides=tuple(overrides))

    def _check_parallel(self, config: Config) -> None:
        parallel, most = config.parallel, self._profile.max_devices
        if parallel.pipeline > 1:
            raise Unsupported(
                f"--pipeline-parallel-size {parallel.pipeline}",
                "the simulation splits layers, not the stack; set it to 1",
            )
        if parallel.tensor > most:
            raise Unsupported(
                f"--tensor-parallel-size {parallel.tensor}", f"the link of {self._profile.name} joins {most} devices"
            )

    def _with_dtypes(self, config: Config, overrides: list[Override]) -> Config:
        """The model's own type where the profile has a peak for it; the core refuses what the user asks in vain."""
        known, dtype = self.capabilities().dtypes, config.model.dtype
        if config.options.dtype == "auto" and dtype not in known:
            reason = f"the weights are {dtype}, for which {self._profile.name} has no peak"
            dtype = known[0]
            overrides.append(Override(option="dtype", value=dtype, reason=reason))
        kv_dtype = dtype if config.options.kv_cache_dtype == "auto" else config.cache.dtype
        return msgspec.structs.replace(
            config,
            model=msgspec.structs.replace(config.model, dtype=dtype),
            cache=msgspec.structs.replace(config.cache, dtype=kv_dtype),
        )

    def _with_kv_memory(self, config: Config, overrides: list[Override]) -> Config:
        """All that weights, activations and inputs leave, unless the user says how much."""
        plan = plan_memory(record_model(config), config, self._profile)
        fixed, devices = plan.weights + plan.activations + plan.inputs, config.parallel.tensor
        asked = config.cache.memory_bytes
        if fixed + (asked or 0) >= plan.free:
            kv = f" with {asked / GIB:.1f} GiB of KV cache" if asked else " without any KV cache"
            raise OutOfDeviceMemory(
                f"{config.model.name} takes {(fixed + (asked or 0)) / GIB:.1f} GiB a device{kv}, {self._profile.name} has "
                f"{plan.free / GIB:.1f} GiB to use: raise --tensor-parallel-size above {devices}, or lower "
                "--kv-cache-memory, --max-num-batched-tokens or the size of --dtype"
            )
        if asked is None:
            asked = plan.free - fixed
            reason = f"what weights and activations leave of the {plan.free / GIB:.1f} GiB that can be used"
            overrides.append(Override(option="kv_cache_memory", value=f"{asked / GIB:.2f}GiB", reason=reason))
        return msgspec.structs.replace(config, cache=msgspec.structs.replace(config.cache, memory_bytes=asked))


def _with_limits(config: Config, overrides: list[Override]) -> Config:
    """Larger steps than a host's, where the user leaves it open."""
    scheduler, options = config.scheduler, config.options
    reason = "what accelerators are usually served with"
    if options.max_num_seqs is None:
        seqs = min(MAX_NUM_SEQS, options.max_num_batched_tokens or MAX_NUM_SEQS)  # a step has room for each one's token
        scheduler = msgspec.structs.replace(scheduler, max_num_seqs=seqs)
        overrides.append(Override(option="max_num_seqs", value=str(seqs), reason=reason))
    if options.max_num_batched_tokens is None:
        tokens = max(MAX_NUM_BATCHED_TOKENS, scheduler.max_num_batched_tokens)
        scheduler = msgspec.structs.replace(scheduler, max_num_batched_tokens=tokens)
        overrides.append(Override(option="max_num_batched_tokens", value=str(tokens), reason=reason))
    return msgspec.structs.replace(config, scheduler=scheduler)
