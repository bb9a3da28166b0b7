"""The engine: requests in, one step after another, tokens out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import msgspec

from core import plugins
from core.cache.manager import CacheManager
from core.clock import Clock
from core.config import Config, Quantization
from core.errors import ConfigError, PlatformError, Unsupported
from core.logs import get_logger
from core.platform import (
    ONLINE_SCHEMES,
    BlockFormat,
    ChosenPlatform,
    Executor,
    MemoryPlan,
    Override,
    Plan,
    Platform,
    Ticket,
)
from core.scheduler.scheduler import Scheduler
from core.transfer import GuardedIndex, block_identity, open_index
from core.types import EngineRequest, EngineStats, RequestDelta, StepPlan

log = get_logger("engine")

#: Between two looks at a request that is being prepared. Requests that arrive wait for it too.
_PREPARING_S = 0.002

Progress = Callable[[str, float], None]
Planned = Callable[[Plan, MemoryPlan], None]


class _Step(NamedTuple):
    plan: StepPlan
    ticket: Ticket


class Engine:
    """Owns the scheduler, the KV cache's bookkeeping and the executor. Used from one thread."""

    def __init__(
        self,
        platform: Platform,
        plan: Plan,
        memory_plan: MemoryPlan,
        executor: Executor,
        scheduler: Scheduler,
        index: GuardedIndex | None = None,
    ) -> None:
        self.config: Config = plan.config
        self.plan = plan
        self.memory_plan = memory_plan
        self._platform = platform
        self._executor = executor
        self._scheduler = scheduler
        self._index = index
        self._in_flight: deque[_Step] = deque()
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._steps = 0

    @classmethod
    def build(cls, config: Config, chosen: ChosenPlatform, progress: Progress, planned: Planned) -> Engine:
        """Make the chosen platform, and an engine on it."""
        return cls.on(plugins.create(chosen), _named(config, chosen), progress, planned)

    @classmethod
    def on(cls, platform: Platform, config: Config, progress: Progress, planned: Planned) -> Engine:
        """Plan, say so, load, size the KV cache, warm up. Owns `platform`, and gives everything back if that fails."""
        with ExitStack() as undo:
            undo.callback(platform.close)
            plan = _plan(platform, config)
            executor = platform.create_executor(plan)
            undo.callback(executor.shutdown)
            memory_plan = executor.plan_memory()
            planned(plan, memory_plan)
            check_memory(memory_plan, plan.config)
            index = _connect(plan.config, memory_plan)
            if index is not None:
                undo.callback(index.close)
            executor.load(progress)
            num_blocks = _num_blocks(memory_plan, executor.measure_kv_budget())
            executor.allocate_kv(num_blocks)
            cache = _cache(plan.config, executor, num_blocks, memory_plan.block_format)
            scheduler = _scheduler(plan.config, cache, index, platform.clock, executor)
            executor.warmup(progress)
            undo.pop_all()
        return cls(platform, plan, memory_plan, executor, scheduler, index)

    @property
    def clock(self) -> Clock:
        """The platform's time, on the scale of arrivals and deadlines."""
        return self._platform.clock

    # --- requests ---

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises InvalidRequest, QueueFull."""
        self._scheduler.add(request)
        self._prompt_tokens += len(request.prompt_token_ids)

    def abort(self, request_id: str) -> None:
        """Forget a request; its blocks are free at the next step. An unknown one is ignored: it may just have ended."""
        self._scheduler.abort(request_id)

    def has_work(self) -> bool:
        """Whether `step` has anything to do: while any request is unfinished, if only to end it at its deadline."""
        return bool(self._in_flight) or self._scheduler.has_unfinished()

    # --- the loop ---

    def step(self) -> list[RequestDelta]:
        """Keep the executor busy with up to `max_in_flight` plans, and take in the oldest one's results."""
        while len(self._in_flight) < self._executor.max_in_flight:
            plan = self._scheduler.schedule()
            if plan is None:
                break
            self._in_flight.append(_Step(plan, self._executor.submit(plan)))
            self._steps += 1
        deltas = self._scheduler.expire()
        if not self._in_flight and self._scheduler.preparing.is_pending:
            time.sleep(_PREPARING_S)  # there is nothing else to do
        if self._in_flight:
            step = self._in_flight.popleft()
            deltas += self._scheduler.update(step.plan, self._executor.collect(step.ticket))
        self._generated_tokens += sum(len(delta.token_ids) for delta in deltas)
        return deltas

    def stats(self) -> EngineStats:
        """Counters and gauges now."""
        now = self._scheduler.stats()
        return EngineStats(
            running=now.running,
            waiting=now.waiting,
            kv_usage=now.kv_usage,
            prefix_queries=now.prefix_queries,
            prefix_hits=now.prefix_hits,
            external_prefix_queries=now.external_queries,
            external_prefix_hits=now.external_hits,
            preemptions=now.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
            kv_transfers=self._executor.kv_transfers(),
        )

    def reset_prefix_cache(self) -> bool:
        """Let no block be found by what it holds. False, and nothing changed, while requests own blocks."""
        return self._scheduler.reset_prefix_cache()

    def shutdown(self) -> None:
        """End the executor and give the platform back. May be called twice."""
        self._in_flight.clear()
        with ExitStack() as end:
            end.callback(self._platform.close)
            if self._index is not None:
                end.callback(self._index.close)
            self._executor.shutdown()


def _named(config: Config, chosen: ChosenPlatform) -> Config:
    return msgspec.structs.replace(config, platform=msgspec.structs.replace(config.platform, name=chosen.name))


def _plan(platform: Platform, config: Config) -> Plan:
    """The platform's plan, held against what it declares. Raises Unsupported."""
    plan, capabilities = platform.plan(config), platform.capabilities()
    model, cache = plan.config.model.dtype, plan.config.cache.dtype
    if model not in capabilities.dtypes:
        raise Unsupported(f"--dtype {model}", f"this platform has {', '.join(capabilities.dtypes)}")
    if cache not in capabilities.kv_dtypes:
        raise Unsupported(f"--kv-cache-dtype {cache}", f"this platform has {', '.join(capabilities.kv_dtypes)}")
    if plan.config.cache.connector is not None and not capabilities.kv_transfer:
        raise Unsupported(
            f"--kv-connector {plan.config.cache.connector.name}", "this platform does not move KV blocks to the host"
        )
    declared = msgspec.structs.replace(plan.config.platform, sampling=capabilities.sampling)
    plan = msgspec.structs.replace(plan, config=msgspec.structs.replace(plan.config, platform=declared))
    return _plan_quantization(plan, capabilities.quantization)


def _plan_quantization(plan: Plan, schemes: tuple[str, ...]) -> Plan:
    """Weights as asked for, or a GGUF file's blocks where the platform has any. Raises Unsupported."""
    model = plan.config.model
    if model.quantization in ("none", *schemes):
        return plan
    has_blocks = bool(set(schemes) - set(ONLINE_SCHEMES))
    wanted = plan.config.options.quantization
    if model.quantization != "stored" or (wanted == "gguf" and not has_blocks):
        has = f"has {', '.join(schemes)}" if schemes else "keeps no quantised weights"
        raise Unsupported(f"--quantization {wanted}", f"this platform {has}")
    if has_blocks:
        reason = (
            f"the file's blocks are kept as they are where the platform has their type; activations are {model.dtype}"
        )
        return _with_quantization(plan, "stored", reason)
    return _with_quantization(plan, "none", f"this platform keeps no GGUF blocks: the weights become {model.dtype}")


def _with_quantization(plan: Plan, value: Quantization, reason: str) -> Plan:
    model = msgspec.structs.replace(plan.config.model, quantization=value)
    override = Override(option="quantization", value=value, reason=reason)
    config = msgspec.structs.replace(plan.config, model=model)
    return msgspec.structs.replace(plan, config=config, overrides=(*plan.overrides, override))


def _num_blocks(plan: MemoryPlan, budget: int) -> int:
    """What was planned, or less where the device has less than it had then."""
    if not plan.kv_block_bytes:  # an encoder keeps nothing
        return plan.num_blocks
    blocks = min(plan.num_blocks, budget // plan.kv_block_bytes)
    if blocks < plan.num_blocks:
        log.warning("less memory than planned", blocks=blocks, planned=plan.num_blocks)
    return blocks


def _connect(config: Config, plan: MemoryPlan) -> GuardedIndex | None:
    """The scheduler's side of the connector that was chosen, if one was."""
    if config.cache.connector is None:
        return None
    if plan.block_format is None:
        raise PlatformError(
            f"platform {config.platform.name!r} declares kv_transfer, and the memory plan of its executor has no "
            "block_format"
        )
    return open_index(config, plan.block_format)


def _cache(config: Config, executor: Executor, num_blocks: int, block_format: BlockFormat | None) -> CacheManager:
    return CacheManager(
        executor.kv_groups(),
        num_blocks,
        config.cache.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        fingerprint=block_identity(config, block_format),
    )


def _scheduler(
    config: Config, cache: CacheManager, index: GuardedIndex | None, clock: Clock, executor: Executor
) -> Scheduler:
    return Scheduler(
        config.scheduler,
        cache,
        eos_token_ids=config.model.eos_token_ids,
        connector=index,
        clock=clock.now,
        is_prepared=executor.prepared,
    )


def plan_memory(config: Config, chosen: ChosenPlatform) -> tuple[Plan, MemoryPlan]:
    """The platform's plan and the memory it would take, without reading a weight."""
    platform = plugins.create(chosen)
    try:
        plan = _plan(platform, _named(config, chosen))
        executor = platform.create_executor(plan)
        try:
            return plan, executor.plan_memory()
        finally:
            executor.shutdown()
    finally:
        platform.close()


def check_memory(plan: MemoryPlan, config: Config) -> None:
    """Raises ConfigError where the plan does not fit the device, or the KV cache one request of full length."""
    fixed = plan.weights + plan.activations + plan.inputs
    if fixed > plan.free:
        raise ConfigError("--dtype", f"the model needs {gib(fixed)} before any KV cache, {gib(plan.free)} are free")
    longest = -(-config.scheduler.max_model_len // plan.block_size)
    if plan.num_blocks <= longest:
        held = max(plan.num_blocks - 1, 0) * plan.block_size
        raise ConfigError(
            "--kv-cache-memory",
            f"{gib(plan.kv_cache)} hold {held} tokens, one request of --max-model-len {config.scheduler.max_model_len} "
            f"takes {gib((longest + 1) * plan.kv_block_bytes)}; raise the one or lower the other",
        )


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
