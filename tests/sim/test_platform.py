"""The platform: what it plans for real models on real devices, what it refuses, and its parts of the contract."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from sim_engine import configured, exact_profile, sim_engine, write_model, write_profile

from core import plugins
from core.clock import MonotonicClock, VirtualClock
from core.config import GIB, Config, parse_options
from core.errors import ConfigError, OutOfDeviceMemory, Unsupported
from core.platform import AttentionQuery, Plan, ProbeEnv
from core.types import DType
from platforms.sim.memory import SimMemory, SimTensor
from platforms.sim.platform import SimPlatform
from platforms.sim.plugin import SimOptions, plugin_info, probe
from platforms.sim.profile import load_profile


def planned(config: Config, profile: str = "h100") -> Plan:
    return SimPlatform(load_profile(profile), virtual=True).plan(config)


# --- choosing ------------------------------------------------------------------------------------------------


def test_it_is_chosen_by_name_only() -> None:
    assert plugins.choose(parse_options({})).name != "sim"
    chosen = plugins.choose(parse_options({"platform": "sim", "platform_opt": ("sim.profile=trn2",)}))
    assert chosen.name == "sim" and chosen.reason == "simulates AWS Trainium2"
    assert plugin_info().options is SimOptions


def test_the_probe_reads_the_profile(tmp_path: Path) -> None:
    assert len(probe(ProbeEnv(options={"profile": "trn2"})).devices) == 16
    with pytest.raises(ConfigError, match=r"sim\.profile"):
        probe(ProbeEnv(options={"profile": str(tmp_path / "nothing.json")}))
    with pytest.raises(ConfigError, match=r"sim\.clock"):
        plugins.choose(parse_options({"platform": "sim", "platform_opt": ("sim.clock=stopped",)}))


def test_its_clock_is_the_one_that_was_asked_for(small: Path) -> None:
    assert isinstance(sim_engine(small).clock, VirtualClock)
    assert isinstance(sim_engine(small, clock="real").clock, MonotonicClock)


# --- planning ------------------------------------------------------------------------------------------------


def test_llama_70b_takes_four_h100(llama3_70b: Path) -> None:
    """A bfloat16 model of 70.6 billion weights, with 320 KiB of KV a token over all devices."""
    for devices in (1, 2):
        with pytest.raises(OutOfDeviceMemory, match=f"raise --tensor-parallel-size above {devices}"):
            planned(configured(llama3_70b, tensor_parallel_size=devices))
    engine = sim_engine(llama3_70b, tensor_parallel_size=4)
    plan = engine.memory_plan
    # Embedding and head are not split in this version, norms never are.
    shared = 2 * (2 * 128_256 * 8192 + 161 * 8192)
    layers = 2 * 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28_672)
    assert plan.weights == shared + layers // 4 + 4 * 64  # and 64 frequencies in float32
    assert plan.kv_block_bytes == 320 * 1024 // 4 * 16
    assert plan.total <= plan.free == int(80e9 * 0.9) < plan.total + plan.kv_block_bytes


def test_the_most_that_can_be_of_use_is_taken(small: Path) -> None:
    plan = sim_engine(small, max_num_seqs=2, max_model_len=100).memory_plan
    assert plan.num_blocks == 2 * 7 + 1


def test_no_memory_of_the_models_size_is_taken_here(llama3_70b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a tensor was made")

    for name in ("empty", "zeros", "ones", "rand", "randn", "tensor", "frombuffer", "from_numpy"):
        monkeypatch.setattr(torch, name, refuse)
    sim_engine(llama3_70b, tensor_parallel_size=8)


def test_a_larger_step_than_a_hosts_where_it_is_left_open(small: Path) -> None:
    overrides = {o.option: o.value for o in planned(configured(small)).overrides}
    assert overrides["max_num_seqs"] == "256" and overrides["max_num_batched_tokens"] == "8192"
    limits = planned(configured(small, max_num_batched_tokens=100)).config.scheduler
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (100, 100)
    limits = planned(configured(small, max_num_seqs=3)).config.scheduler
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (3, 8192)


def test_a_type_that_the_device_has(small: Path, tmp_path: Path) -> None:
    wide = write_model(tmp_path / "float32", torch_dtype="float32")
    config = planned(configured(wide)).config
    assert (config.model.dtype, config.cache.dtype) == (DType.FLOAT32, DType.FLOAT32)
    plan = planned(configured(wide), "tpu-v5e")  # which has a peak for bfloat16 only
    assert plan.config.model.dtype is DType.BFLOAT16
    assert any(o.option == "dtype" and "no peak" in o.reason for o in plan.overrides)
    with pytest.raises(Unsupported, match="--dtype float32"):
        sim_engine(small, profile="tpu-v5e", dtype="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"tensor_parallel_size": 16}, "--tensor-parallel-size 16 .*joins 8 devices"),
    ],
)
def test_what_is_not_simulated_is_refused(small: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        planned(configured(small, **options))


def test_more_kv_than_there_is_room_for(small: Path) -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"with 100\.0 GiB of KV cache"):
        planned(configured(small, kv_cache_memory="100GiB"))
    assert planned(configured(small, kv_cache_memory="1GiB")).config.cache.memory_bytes == GIB


def test_the_plan_is_pure(small: Path) -> None:
    config = configured(small)
    assert planned(config) == planned(config)


def test_a_profile_of_ones_own(small: Path, tmp_path: Path) -> None:
    file = write_profile(tmp_path / "small.json", memory_bytes=64 << 20)
    assert sim_engine(small, profile=str(file), max_num_batched_tokens=256).memory_plan.free == int((64 << 20) * 0.9)


# --- the contract's other parts ------------------------------------------------------------------------------


def test_kernels_take_their_time() -> None:
    platform = SimPlatform(exact_profile(memory_bandwidth=1.0, launch_s=3.0), virtual=True)
    x, weight, out = (SimTensor(shape, DType.BFLOAT16) for shape in ((10, 4), (8, 4), (10, 8)))
    platform.kernels().get("linear")(x, weight, None, out)
    assert platform.clock.now() == pytest.approx(2 * (10 * 4 + 8 * 4 + 10 * 8) + 3.0)


def test_which_kernels_there_are() -> None:
    kernels = SimPlatform(load_profile("h100"), virtual=True).kernels()
    ops = importlib.import_module("core.ops")
    assert {op for op in ops.REFERENCE if kernels.supports(op)} == set(
        ops.REFERENCE
    ) - ops.ATTENTION_OPS - ops.ENCODER_OPS
    with pytest.raises(Unsupported, match="op attention"):
        kernels.get("attention")


def test_attention_has_a_layout_and_takes_time() -> None:
    platform = SimPlatform(exact_profile(memory_bandwidth=1.0), virtual=True)
    (backend,) = platform.attention()
    query = AttentionQuery(16, 4, 2, None, DType.BFLOAT16, DType.BFLOAT16, 16)
    assert backend.supports(query) and not backend.supports(AttentionQuery(16, 4, 3, None, *[DType.BFLOAT16] * 2, 16))
    layout = backend.kv_layout(query)
    cache = [SimTensor((5, *layout.block_shape), layout.dtype)] * layout.planes
    backend.copy_blocks(cache, [(1, 2), (3, 4)])
    assert platform.clock.now() == pytest.approx(2 * 2 * 2 * 2 * 16 * 16 * 2)
    before = platform.clock.now()
    row, slots = SimTensor((7, 32), DType.BFLOAT16), SimTensor((7,), DType.INT32)
    backend.write_kv(row, row, cache, slots)
    assert platform.clock.now() - before == pytest.approx(4 * 7 * 32 * 2 + 4 * 7)
    with pytest.raises(Unsupported, match="step plans"):
        backend.forward()


def test_memory_counts_and_holds_nothing() -> None:
    memory = SimMemory(exact_profile(memory_bytes=1000))
    handle = memory.alloc((10, 4), DType.FLOAT32, "weights")
    assert memory.in_use() == {"weights": 160} and memory.info().free == 840
    with pytest.raises(OutOfDeviceMemory, match="841 bytes are wanted"):
        memory.alloc((841,), DType.UINT8, "kv")
    for use in (lambda: memory.upload(handle, None), lambda: memory.download(handle)):
        with pytest.raises(Unsupported, match="no contents"):
            use()
    memory.free(handle)
    with pytest.raises(ValueError, match="freed before"):
        memory.free(handle)


def test_features_that_cannot_take_effect_are_not_declared() -> None:
    declared = SimPlatform(load_profile("h100"), virtual=True).capabilities().sampling
    assert not {"logprobs", "logit_bias"} & set(declared) and "temperature" in declared
