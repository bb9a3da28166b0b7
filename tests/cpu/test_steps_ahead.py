"""A step that is planned before the last one's tokens are known changes no answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from core import LLM, SamplingParams
from core.types import EngineRequest
from platforms.cpu.platform import CpuPlatform

#: Fewer KV blocks of 16 tokens than the answers take together: some are preempted with a token in flight.
SHORT_OF_BLOCKS = "320KiB"


def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(3, tiny_models.VOCAB) for _ in range(rng.randrange(2, 60))] for _ in range(12)]


def asked(stop_token: int) -> list[SamplingParams]:
    """Greedy and sampled, each to its length, to a stop token, and with one token only."""
    greedy, warm = {"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.95, "seed": 11}
    endings: list[dict[str, Any]] = [
        {"max_tokens": 40, "ignore_eos": True},
        {"max_tokens": 40, "stop_token_ids": (stop_token,)},
        {"max_tokens": 1},
    ]
    return [SamplingParams(**way, **ending) for way in (greedy, warm) for ending in endings] * 2


@pytest.fixture
def make(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., LLM]:
    def make(ahead: int, **options: Any) -> LLM:
        monkeypatch.setattr(CpuPlatform, "max_in_flight", ahead)
        defaults = {"platform": "cpu", "dtype": "float32", "max_num_seqs": 8, "max_model_len": 160, "progress": False}
        return LLM(str(tiny_model("llama")), **{**defaults, **options})

    return make


@pytest.mark.parametrize("memory", ["16MiB", SHORT_OF_BLOCKS])
def test_the_same_tokens_and_the_same_ends(make: Callable[..., LLM], memory: str) -> None:
    found, preempted = [], []
    for ahead in (1, 2):
        with make(ahead, kv_cache_memory=memory) as llm:
            (first,) = llm.generate([prompts()[1]], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
            outputs = llm.generate(prompts(), asked(first.outputs[0].token_ids[5]))
            found.append(
                [(o.outputs[0].token_ids, o.outputs[0].finish_reason, o.outputs[0].stop_reason) for o in outputs]
            )
            preempted.append(llm.engine.stats().preemptions > 0)
            assert llm.engine.stats().running == 0
    assert found[0] == found[1]
    assert {reason for _, reason, _ in found[1]} == {"length", "stop"}
    assert preempted == [memory == SHORT_OF_BLOCKS] * 2


def test_what_an_aborted_request_still_samples_is_dropped(make: Callable[..., LLM]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=0)
    with make(2) as llm:
        (whole,) = llm.generate([prompts()[0]], params)
        engine, tokens = llm.engine, list[int]()
        for name, prompt in (("kept", prompts()[0]), ("gone", prompts()[2])):
            engine.add(EngineRequest(request_id=name, prompt_token_ids=prompt, params=params))
        engine.step()
        engine.step()
        engine.abort("gone")
        while engine.has_work():
            for delta in engine.step():
                assert delta.request_id == "kept"
                tokens += delta.token_ids
        assert tokens == whole.outputs[0].token_ids[-len(tokens) :]
        assert engine.stats().kv_usage == 0
