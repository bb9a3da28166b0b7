"""What the probe says of machines and installations, which options are taken, and how a plan is decided."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import plugins
from core.config import CacheConfig, Config, ModelConfig, SchedulerConfig, parse_options
from core.errors import ConfigError, PlatformNotFound, Unsupported
from core.platform import Plan, ProbeEnv, ProbeResult
from core.types import DType
from core_openvino import host, plugin
from core_openvino.platform import OpenVinoPlatform


def probe(**options: str) -> ProbeResult:
    return plugin.probe(ProbeEnv(options=options))


def test_it_is_available_and_never_chosen_unasked() -> None:
    (found,) = plugins.discover("openvino")
    candidate = plugins.probe(found, {})
    assert candidate.state == "AVAILABLE", candidate.result.reason
    assert candidate.experimental
    assert plugins.choose(parse_options({})).name != "openvino"


@pytest.mark.parametrize("missing", ["openvino", "torch"])
def test_it_is_absent_without_what_it_needs(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = plugin.find_spec
    monkeypatch.setattr(plugin, "find_spec", lambda name: None if name == missing else there(name))
    found = probe()
    assert found.state == "ABSENT"
    assert "not installed" in found.reason and missing in found.reason


def test_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    assert "pip install openvino" in probe().reason


def package(folder: Path, module: bytes | None) -> Any:
    if module is not None:
        (folder / f"_pyopenvino{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(module)
    return lambda name: SimpleNamespace(submodule_search_locations=[str(folder)])


def test_a_library_that_does_not_load_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "find_spec", package(tmp_path, b"\x7fELF and nothing more"))
    found = probe()
    assert found.state == "BROKEN"
    assert "does not load" in found.reason and str(tmp_path) in found.reason and "--force-reinstall" in found.reason


def test_a_build_for_another_python_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "find_spec", package(tmp_path, None))
    assert probe().state == "BROKEN"
    assert "no native module for Python" in probe().reason


@pytest.mark.parametrize("device", ["GPU", "NPU", "AUTO"])
def test_other_devices_are_refused_with_the_reason(device: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"openvino\.device: '{device}' is not served: .*nothing here was ever run on another"
    ):
        probe(device=device)


def test_threads_are_those_of_the_machine() -> None:
    assert probe(threads=str(host.usable_cores())).state == "AVAILABLE"
    for threads in ("0", str(host.usable_cores() + 1)):
        with pytest.raises(ConfigError, match=rf"openvino\.threads: {threads} is not from 1"):
            probe(threads=threads)


def test_an_option_that_it_does_not_have_is_refused() -> None:
    with pytest.raises((ConfigError, PlatformNotFound), match="thread"):
        plugins.choose(parse_options({"platform": "openvino", "platform_opt": ("openvino.thread=1",)}))


# --- the plan ------------------------------------------------------------------------------------------------


class OldProcessor(OpenVinoPlatform):
    """On a processor without bfloat16."""

    def __init__(self) -> None:
        super().__init__(1, torch_may_thread=False)
        self._dtypes = (DType.FLOAT32,)


def plan(platform: OpenVinoPlatform, stored: DType, memory_bytes: int | None = None, **options: Any) -> Plan:
    """The plan for a model whose weights are `stored`, resolved as core resolves it."""
    wanted = DType(options.get("dtype", stored))
    model = ModelConfig(
        name="m", path="/m", format="huggingface", architecture="LlamaForCausalLM", hf_config={}, dtype=wanted,
        max_model_len=64, vocab_size=8, eos_token_ids=(1,), tokenizer_path="/m",
    )  # fmt: skip
    cache = CacheConfig(dtype=DType(options.get("kv_cache_dtype", wanted)), memory_bytes=memory_bytes)
    return platform.plan(Config(options=parse_options(options), model=model, cache=cache, scheduler=SchedulerConfig()))


@pytest.fixture(scope="module")
def platform() -> OpenVinoPlatform:
    return OpenVinoPlatform(1, torch_may_thread=False)


def test_what_it_does_not_have_becomes_float32_and_says_why(platform: OpenVinoPlatform) -> None:
    for planned in (plan(platform, DType.FLOAT16), plan(OldProcessor(), DType.BFLOAT16)):
        assert (planned.config.model.dtype, planned.config.cache.dtype) == (DType.FLOAT32, DType.FLOAT32)
        assert [override.option for override in planned.overrides] == ["dtype", "kv_cache_memory"]
        assert "float32 holds them exactly" in planned.overrides[0].reason


def test_what_was_asked_for_is_kept_or_refused(platform: OpenVinoPlatform) -> None:
    with pytest.raises(Unsupported, match=r"--dtype float16.*choose float32"):
        plan(platform, DType.FLOAT32, dtype="float16")
    with pytest.raises(Unsupported, match=r"--kv-cache-dtype bfloat16.*no bfloat16 instructions.*choose float32"):
        plan(OldProcessor(), DType.FLOAT32, kv_cache_dtype="bfloat16")
    assert plan(platform, DType.FLOAT32, memory_bytes=1 << 20).overrides == ()
    with pytest.raises(ConfigError, match=r"--kv-cache-memory: .* more than"):
        plan(platform, DType.FLOAT32, memory_bytes=1 << 60)
