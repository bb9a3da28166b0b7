from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from core.config import CacheConfig, Config, ModelConfig, Options, SchedulerConfig
from core.errors import ConfigError, Unsupported
from core.platform import AttentionQuery, PlatformContext, ProbeEnv
from core.types import DType
from platforms._shared import _native, host
from platforms._shared.native import plugin as shared
from platforms._shared.native.plugin import HostOptions
from platforms.cpu import plugin
from platforms.cpu.platform import CpuPlatform

GIB = 1 << 30


def config(stored: str = "float32", *, cache: CacheConfig | None = None, **options: Any) -> Config:
    """A configuration as `resolve` leaves it for weights of type `stored`."""
    dtype = DType(stored if options.get("dtype", "auto") == "auto" else options["dtype"])
    kv = options.get("kv_cache_dtype", "auto")
    return Config(
        options=Options(**options),
        model=ModelConfig(
            name="m", path="/m", format="huggingface", architecture="LlamaForCausalLM", hf_config={}, dtype=dtype,
            max_model_len=64, vocab_size=8, eos_token_ids=(1,), tokenizer_path="/m",
        ),
        cache=cache or CacheConfig(dtype=dtype if kv == "auto" else DType(kv)),
        scheduler=SchedulerConfig(),
    )  # fmt: skip


def platform(monkeypatch: pytest.MonkeyPatch, *, memory: int = 64 * GIB) -> CpuPlatform:
    monkeypatch.setattr(host, "memory", lambda: host.Memory(memory, memory // 2))
    return CpuPlatform(HostOptions())


@pytest.mark.parametrize(
    ("stored", "expected", "reason"),
    [
        ("float32", "float32", None),
        ("bfloat16", "bfloat16", None),
        ("float16", "bfloat16", "which the CPU kernels do not have"),
    ],
)
def test_auto_dtype(monkeypatch: pytest.MonkeyPatch, stored: str, expected: str, reason: str | None) -> None:
    plan = platform(monkeypatch).plan(config(stored))
    assert (plan.config.model.dtype, plan.config.cache.dtype) == (expected, expected)
    reasons = [override.reason for override in plan.overrides if override.option == "dtype"]
    assert reasons == [] if reason is None else reason in reasons[0]


@pytest.mark.parametrize(("wanted", "expected"), [("auto", "none"), ("gguf", "stored")])
def test_a_files_blocks_are_kept_if_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, wanted: str, expected: str
) -> None:
    given = config("bfloat16", quantization=wanted)
    given = msgspec.structs.replace(given, model=msgspec.structs.replace(given.model, quantization="stored"))
    plan = platform(monkeypatch).plan(given)
    assert plan.config.model.quantization == expected
    reasons = [override.reason for override in plan.overrides if override.option == "quantization"]
    assert reasons == [] if wanted == "gguf" else "--quantization gguf" in reasons[0]


def test_what_the_user_says_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    given = config("bfloat16", dtype="bfloat16", kv_cache_dtype="float32")
    given = msgspec.structs.replace(given, cache=msgspec.structs.replace(given.cache, memory_bytes=GIB))
    plan = platform(monkeypatch).plan(given)
    assert plan.config == given
    assert plan.overrides == ()


@pytest.mark.parametrize("option", ["dtype", "kv_cache_dtype"])
def test_float16_is_refused_with_the_option(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    with pytest.raises(Unsupported, match=f"--{option.replace('_', '-')} float16 is not supported: .*bfloat16"):
        platform(monkeypatch).plan(config(**{option: "float16"}))


@pytest.mark.parametrize(("memory", "expected"), [(8 * GIB, 2 * GIB), (64 * GIB, 4 * GIB)])
def test_the_kv_cache_has_a_size_with_its_reason(monkeypatch: pytest.MonkeyPatch, memory: int, expected: int) -> None:
    plan = platform(monkeypatch, memory=memory).plan(config())
    assert plan.config.cache.memory_bytes == expected
    (override,) = plan.overrides
    assert (override.option, override.value) == ("kv_cache_memory", f"{expected / GIB:.2f}GiB")


def test_a_kv_cache_beyond_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        platform(monkeypatch, memory=GIB).plan(config(cache=CacheConfig(memory_bytes=2 * GIB)))


def test_plan_is_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = platform(monkeypatch), config("bfloat16")
    before = msgspec.to_builtins(given)
    first = made.plan(given)
    assert made.plan(given) == first and msgspec.to_builtins(given) == before
    assert made.memory().in_use() == {}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=type(first)) == first


# --- threads -------------------------------------------------------------------------------------------------


def test_threads_are_set_for_torch_and_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads(), _native.num_threads()
    monkeypatch.setattr(host, "usable_cores", lambda: 3)
    try:
        CpuPlatform(HostOptions(threads=2))
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), _native.num_threads(), seen) == (2, 2, [2])
        CpuPlatform(HostOptions())
        assert (torch.get_num_threads(), _native.num_threads()) == (3, 3)
        for threads in (0, 4):
            with pytest.raises(ConfigError, match=r"cpu\.threads: .* from 1 to the 3 cores"):
                CpuPlatform(HostOptions(threads=threads))
    finally:
        torch.set_num_threads(before[0])
        _native.set_num_threads(before[1])


# --- the probe -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, None),
    ],
)
def test_threads_spin_briefly_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(plugin, "import_module", lambda name: SimpleNamespace(CpuPlatform=lambda options: None))
    plugin.create_platform(PlatformContext())
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("x86")
def test_probe_describes_this_machine_and_repeats() -> None:
    result = plugin.probe(ProbeEnv())
    assert result.state == "AVAILABLE" and result.score == 0
    assert result.devices[0].memory_bytes == host.memory().total
    assert plugin.probe(ProbeEnv()) == result


@pytest.mark.usefixtures("x86")
def test_the_probe_says_which_kernels_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for tier, setting, why in (("b", "", "b (the best of a, b)"), ("a", "a", "a (CORE_CPU_ISA of a, b)")):
        monkeypatch.setenv("CORE_CPU_ISA", setting)
        native = SimpleNamespace(isa=lambda tier=tier: tier, available_isas=lambda: ["a", "b"])
        monkeypatch.setitem(sys.modules, shared.NATIVE, native)
        result = plugin.probe(ProbeEnv())
        assert result.reason.endswith(f"kernels {why}") and result.devices[0].details["kernels"] == why


@pytest.mark.usefixtures("x86")
def test_without_torch_it_is_absent_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "find_spec", lambda name: None)
    result = plugin.probe(ProbeEnv())
    assert result.state == "ABSENT" and "pip install 'core[cpu]'" in result.reason


@pytest.mark.usefixtures("x86")
def test_without_its_kernels_it_is_broken_with_the_line_that_builds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, shared.NATIVE, None)
    result = plugin.probe(ProbeEnv())
    assert result.state == "BROKEN" and "pip install -e ." in result.reason


@pytest.mark.usefixtures("x86")
def test_a_tier_that_this_cpu_lacks_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def isa() -> str:
        raise ValueError("CORE_CPU_ISA: no avx1024")

    monkeypatch.setitem(sys.modules, shared.NATIVE, SimpleNamespace(isa=isa))
    result = plugin.probe(ProbeEnv())
    assert result.state == "BROKEN" and "no avx1024" in result.reason


# --- attention -----------------------------------------------------------------------------------------------

QUERY = AttentionQuery(64, 6, 2, None, DType.FLOAT32, DType.BFLOAT16, block_size=16)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"dtype": DType.FLOAT16}, "not float16"),
        ({"kv_dtype": DType.INT8}, ""),
        ({"kv_dtype": DType.FLOAT16}, "not float16"),
        ({"dtype": DType.INT8}, "not int8"),
        ({"head_dim": 264}, "264 is more than 256"),
        ({"num_heads": 7}, "evenly"),
    ],
)
def test_attention_says_what_it_supports(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], reason: str) -> None:
    (backend,) = platform(monkeypatch).attention()
    support = backend.supports(replace(QUERY, **change))
    assert bool(support) == (not reason) and reason in support.reason


@pytest.mark.parametrize(("kv_dtype", "taken"), [(DType.BFLOAT16, 2 * 64), (DType.INT8, 64 + 4)])
def test_a_block_of_int8_is_little_more_than_half_as_large(
    monkeypatch: pytest.MonkeyPatch, kv_dtype: DType, taken: int
) -> None:
    (backend,) = platform(monkeypatch).attention()
    layout = backend.kv_layout(replace(QUERY, kv_dtype=kv_dtype))
    assert layout.block_bytes == 2 * QUERY.num_kv_heads * QUERY.block_size * taken
