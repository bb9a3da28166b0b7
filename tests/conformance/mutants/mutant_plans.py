"""Faults of planning and of what is declared."""

from __future__ import annotations

import itertools

import msgspec
from mutant_faults import fault
from mutant_platform import MutantPlatform, TwoDevices
from torch import Tensor

from core.config import Config
from core.ops import REFERENCE
from core.platform import Capabilities, Override, Plan
from core.types import DType


@fault("plan-counts", "plan() gives the KV cache a block less every time", "plan.pure")
def plan_counts(platform: MutantPlatform) -> None:
    settle, turns = platform.settle, itertools.count()

    def changing(config: Config) -> Plan:
        plan = settle(config)
        cache = plan.config.cache
        smaller = msgspec.structs.replace(cache, memory_bytes=(cache.memory_bytes or 0) - next(turns))
        return Plan(config=msgspec.structs.replace(plan.config, cache=smaller), overrides=plan.overrides)

    platform.settle = changing


@fault("plan-allocates", "plan() allocates what it plans", "plan.pure")
def plan_allocates(platform: MutantPlatform) -> None:
    settle = platform.settle

    def allocating(config: Config) -> Plan:
        platform.memory_backend.alloc((1024,), DType.UINT8, "kv")
        return settle(config)

    platform.settle = allocating


@fault("plan-mutates", "plan() changes the configuration that it was given", "plan.pure")
def plan_mutates(platform: MutantPlatform) -> None:
    settle = platform.settle

    def mutating(config: Config) -> Plan:
        config.model.hf_config["planned"] = True
        return settle(config)

    platform.settle = mutating


@fault("plan-unexplained", "plan() changes options and says nothing", "plan.explained")
def plan_unexplained(platform: MutantPlatform) -> None:
    settle = platform.settle
    platform.settle = lambda config: Plan(config=settle(config).config)


@fault("plan-without-reason", "an Override has no reason", "plan.explained")
def plan_without_reason(platform: MutantPlatform) -> None:
    settle = platform.settle

    def silent(config: Config) -> Plan:
        plan = settle(config)
        overrides = [msgspec.structs.replace(override, reason="") for override in plan.overrides]
        return Plan(config=plan.config, overrides=tuple(overrides))

    platform.settle = silent


@fault("plan-ignores-user", "--kv-cache-memory is ignored", "plan.keeps_promises")
def plan_ignores_user(platform: MutantPlatform) -> None:
    settle = platform.settle

    def stubborn(config: Config) -> Plan:
        return settle(msgspec.structs.replace(config, cache=msgspec.structs.replace(config.cache, memory_bytes=None)))

    platform.settle = stubborn


@fault("plan-stays-home", "the plan cannot be pickled", "plan.travels")
def plan_stays_home(platform: MutantPlatform) -> None:
    settle = platform.settle

    class Local(Override, frozen=True, kw_only=True):
        """A class that pickle cannot find."""

    def local(config: Config) -> Plan:
        plan = settle(config)
        more = Local(option="compile", value="on", reason="it is always on")
        return Plan(config=plan.config, overrides=(*plan.overrides, more))

    platform.settle = local


@fault("plan-undecided", "the size of the KV cache is left open", "plan.decides")
def plan_undecided(platform: MutantPlatform) -> None:
    settle = platform.settle

    def undecided(config: Config) -> Plan:
        plan = settle(config)
        cache = msgspec.structs.replace(plan.config.cache, memory_bytes=config.cache.memory_bytes)
        return Plan(config=msgspec.structs.replace(plan.config, cache=cache), overrides=plan.overrides)

    platform.settle = undecided


@fault("parallel-ignored", "--tensor-parallel-size is ignored", "parallel.refused")
def parallel_ignored(platform: MutantPlatform) -> None:
    settle = platform.settle

    def alone(config: Config) -> Plan:
        plan = settle(config)
        parallel = msgspec.structs.replace(plan.config.parallel, tensor=1, pipeline=1)
        return Plan(config=msgspec.structs.replace(plan.config, parallel=parallel), overrides=plan.overrides)

    platform.settle = alone


@fault("unknown-sampling", "a sampling feature is declared that does not exist", "api.capabilities")
def unknown_sampling(platform: MutantPlatform) -> None:
    platform.declared = msgspec.structs.replace(platform.declared, sampling=("temprature",))


@fault("capabilities-change", "capabilities() declares something else every time", "api.stable_objects")
def capabilities_change(platform: MutantPlatform) -> None:
    turns, declared = itertools.count(), platform.declared

    def capabilities() -> Capabilities:
        return declared if next(turns) % 2 else msgspec.structs.replace(declared, sampling=())

    platform.capabilities = capabilities  # type: ignore[method-assign]


@fault(
    "shards-unsummed",
    "two devices that share a product do not add up their parts",
    "parallel.parity",
    kind="two_devices",
)
def shards_unsummed(platform: MutantPlatform) -> None:
    assert isinstance(platform, TwoDevices)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        half = x.shape[1] // 2
        REFERENCE["linear"](x[:, :half], weight[:, :half], bias, out)

    platform.split_kernel = linear
