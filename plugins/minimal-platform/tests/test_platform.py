"""The plugin is found and chosen by name, plans with its reasons, and passes the kit that core has for platforms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core import plugins
from core.config import CacheConfig, Config, ModelConfig, SchedulerConfig, parse_options
from core.errors import ConfigError, Unsupported
from core.ops import REFERENCE
from core.platform import Plan
from core.types import DType
from core_minimal.platform import MinimalPlatform
from core_minimal.plugin import MinimalOptions


def plan(stored: DType, **options: Any) -> Plan:
    """The platform's plan for a model whose weights are `stored`, resolved as core resolves it."""
    wanted = DType(options.get("dtype", stored))
    model = ModelConfig(
        name="m", path="/m", format="huggingface", architecture="LlamaForCausalLM", hf_config={}, dtype=wanted,
        max_model_len=64, vocab_size=8, eos_token_ids=(1,), tokenizer_path="/m",
    )  # fmt: skip
    cache = CacheConfig(dtype=DType(options.get("kv_cache_dtype", wanted)))
    config = Config(options=parse_options(options), model=model, cache=cache, scheduler=SchedulerConfig())
    return MinimalPlatform(MinimalOptions()).plan(config)


def test_it_is_found_and_runs_anywhere() -> None:
    (found,) = plugins.discover("minimal")
    candidate = plugins.probe(found, {})
    assert candidate.state == "AVAILABLE", candidate.result.reason
    assert candidate.experimental, "it would be a surprise to be served by it unasked"


def test_a_plan_gives_a_reason_for_each_change() -> None:
    planned = plan(DType.BFLOAT16)
    assert (planned.config.model.dtype, planned.config.cache.dtype) == (DType.FLOAT32, DType.FLOAT32)
    assert planned.config.cache.memory_bytes == 256 << 20
    assert {override.option for override in planned.overrides} == {"dtype", "kv_cache_dtype", "kv_cache_memory"}
    assert all(override.reason for override in planned.overrides)
    assert [override.option for override in plan(DType.FLOAT32).overrides] == ["kv_cache_memory"]


@pytest.mark.parametrize("option", ["dtype", "kv_cache_dtype"])
def test_what_it_cannot_do_is_refused_with_the_way_out(option: str) -> None:
    with pytest.raises(Unsupported, match=f"{option} bfloat16.*choose float32"):
        plan(DType.FLOAT32, **{option: "bfloat16"})


def test_the_option_chooses_whose_kernels_run() -> None:
    for kernels, own in (("numpy", True), ("reference", False)):
        options = {"platform": "minimal", "platform_opt": (f"minimal.kernels={kernels}",)}
        table = plugins.create(plugins.choose(parse_options(options))).kernels()
        assert (table.get("linear") is not REFERENCE["linear"]) is own
        assert table.get("embedding") is REFERENCE["embedding"]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--platform-opt minimal\.kernels: 'fast' will not do"):
        plugins.choose(parse_options({"platform": "minimal", "platform_opt": ("minimal.kernels=fast",)}))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_passes_conformance(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "core.cli.main", "conformance", "minimal", "--level", "serve", "--report", report]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(report.read_text())["passed"] is True
