"""Whole models through the engine: the CPU platform's tokens, whatever the batch, the chunks and the way to run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core import LLM, SamplingParams

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
GREEDY = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)

TEXTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived a",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "Explain in one sentence why the sky is blue.",
    "1, 2, 3, 5, 8, 13,",
    "My favourite recipe begins with two onions,",
    "La révolution française a commencé en",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "Q: What is the largest planet?\nA:",
]


def prompts() -> list[list[int]]:
    """Lengths around a block's, shorter and longer than a window; token ids of the tiny models' vocabulary."""
    rng = random.Random(0)
    lengths = [1, 15, 16, 17, 90, *(rng.randrange(2, 90) for _ in range(7))]
    return [[rng.randrange(3, 384) for _ in range(length)] for length in lengths]


def tokens(model: str | None, given: list[str] | list[list[int]], params: SamplingParams, **options: object) -> object:
    settings = {"dtype": "float32", "max_num_seqs": 16, "kv_cache_memory": "128MiB", **options}
    with LLM(model, progress=False, **settings) as llm:  # type: ignore[arg-type]
        return [output.outputs[0].token_ids for output in llm.generate(given, params, progress=False)]  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_the_cpu_platforms(family: str, tiny_model: Callable[[str], Path]) -> None:
    model, given = str(tiny_model(family)), prompts()
    expected = tokens(model, given, GREEDY, platform="cpu")
    assert tokens(model, given, GREEDY, platform="openvino") == expected
    assert tokens(model, given, GREEDY, platform="openvino", max_num_batched_tokens=32) == expected, "chunked"
    assert tokens(model, given, GREEDY, platform="openvino", compile=False) == expected, "op by op"


@pytest.mark.slow
def test_the_demo_models_tokens_are_the_cpu_platforms() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    ours, theirs = (tokens(None, TEXTS, params, platform=p, max_model_len=512) for p in ("openvino", "cpu"))
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_passes_conformance(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "core.cli.main", "conformance", "openvino", "--level", "serve", "--report", report]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(report.read_text())["passed"] is True
