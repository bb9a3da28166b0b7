"""The TPU platform on XLA's own CPU device: `make test-xla`, with the versions that requirements/tpu.txt pins."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from pathlib import Path

import pytest

from core import LLM, SamplingParams
from core.errors import CoreError
from tests.support import tiny_models

metrics = pytest.importorskip("torch_xla.debug.metrics", reason="`make test-xla` has the versions for it")

pytestmark = [pytest.mark.xla, pytest.mark.slow]

ON_CPU = ("tpu.device=cpu", "tpu.buckets=8x8 64x8", "tpu.contexts=64 128")
PROMPTS = [
    "The capital of France is", "Once upon a time", "Water boils at", "def main():", "The best way to learn is",
    "In 1969,", "A list of colours:", "Dear Sir or Madam,", "2 + 2 =", "The sun rises in the",
]  # fmt: skip


def test_conformance() -> None:
    """Levels boot, ops and serve, as a backend's author runs them."""
    options = ["--platform-opt", "tpu.device=cpu", "--platform-opt", "tpu.buckets=8x8 128x8"]
    command = [
        sys.executable,
        "-m",
        "core.cli.main",
        "conformance",
        "tpu",
        *options,
        "--platform-opt",
        "tpu.contexts=256",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout[-200:])


def _greedy(platform: str, **options: object) -> list[list[int]]:
    with LLM(platform=platform, dtype="float32", max_model_len=64, progress=False, **options) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=32, ignore_eos=True))
        return [list(output.outputs[0].token_ids) for output in outputs]


def test_tokens_are_the_cpu_platforms() -> None:
    """A real model in float32, 10 prompts of 32 tokens."""
    on_xla = _greedy("tpu", platform_opt=("tpu.device=cpu", "tpu.buckets=8x8 64x8", "tpu.contexts=64"))
    assert on_xla == _greedy("cpu")
    assert all(len(tokens) == 32 for tokens in on_xla)


def test_nothing_is_compiled_after_warm_up(tmp_path: Path) -> None:
    """200 mixed requests: lengths, forks, sampling."""
    model = tiny_models.save("llama", tmp_path)
    rng = random.Random(7)
    with LLM(str(model), platform="tpu", platform_opt=ON_CPU, max_model_len=128, progress=False) as llm:
        prompts = [[rng.randrange(1, 60) for _ in range(rng.randrange(1, 90))] for _ in range(200)]
        params = [
            SamplingParams(
                temperature=rng.choice([0.0, 0.8]),
                seed=1,
                max_tokens=rng.randrange(1, 30),
                n=rng.choice([1, 1, 1, 2]),
                ignore_eos=True,
            )
            for _ in prompts
        ]
        before = metrics.counter_value("UncachedCompile")
        outputs = llm.generate(prompts, params)
        assert len(outputs) == 200
        assert metrics.counter_value("UncachedCompile") == before


def test_the_caches_memory_becomes_the_new_caches(tmp_path: Path) -> None:
    with LLM(str(tiny_models.save("llama", tmp_path)), platform="tpu", platform_opt=ON_CPU, progress=False):
        aliased = metrics.metric_data("InputOutputAliasCount")
    assert aliased is not None
    assert aliased[1] > 0


def test_longer_than_the_largest_bucket_is_refused_at_the_door(tmp_path: Path) -> None:
    model = str(tiny_models.save("llama", tmp_path))
    with pytest.raises(CoreError, match=r"--max-model-len 256.*tpu\.buckets"):
        LLM(model, platform="tpu", platform_opt=ON_CPU, max_model_len=256, progress=False)
    with (
        LLM(model, platform="tpu", platform_opt=ON_CPU, progress=False) as llm,
        pytest.raises(CoreError, match="128"),
    ):
        llm.generate([[1] * 200], SamplingParams(max_tokens=1))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cache_that_cannot_be_read_is_made_again_and_said(tmp_path: Path, damaged: bool) -> None:
    """In processes of their own: torch_xla takes one cache directory a process."""
    kept = tmp_path / "kept"
    model = tiny_models.save("llama", tmp_path / "model")
    program = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from core import LLM, SamplingParams\n"
        f"with LLM({str(model)!r}, platform='tpu', platform_opt={(*ON_CPU[:1], 'tpu.buckets=8x8', 'tpu.contexts=64')!r}"
        f" + ('tpu.cache_dir={kept}',), max_model_len=64, progress=False) as llm:\n"
        "    print(llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=4))[0].outputs[0].token_ids)\n"
    )
    first = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert any(kept.iterdir())
    if damaged:
        for file in kept.iterdir():
            file.write_bytes(b"not a program")
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert second.stdout == first.stdout
    if damaged:
        assert "could not be read, and was made again" in second.stderr
    logging.getLogger(__name__).info(second.stderr)
