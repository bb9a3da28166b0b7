"""The engine without a server: one batch over and over, or many prompts as fast as they go."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from core import LLM, SamplingParams
from core.bench.figures import Figures, spread
from core.errors import ConfigError


def latency(
    llm: LLM,
    *,
    batch_size: int,
    input_tokens: int,
    output_tokens: int,
    warmup: int,
    runs: int,
    done: Callable[[], None],
) -> Figures:
    """Seconds that one batch takes from its submission to its last token, over `runs` runs after `warmup` ones."""
    params = _exactly(output_tokens)
    seconds = []
    for run in range(-warmup, runs):
        # New prompts each time: the same ones would be found in the prefix cache.
        prompts = random_prompts(llm, batch_size, input_tokens, seed=run)
        begin = time.perf_counter()
        llm.generate(prompts, params, progress=False)
        if run >= 0:
            seconds.append(time.perf_counter() - begin)
        done()
    steps = spread("latency", seconds)
    return {"batch_size": batch_size, "input_tokens": input_tokens, "output_tokens": output_tokens, **steps}


def throughput(llm: LLM, *, requests: int, input_tokens: int, output_tokens: int) -> Figures:
    """Tokens a second when all requests are there at once."""
    llm.generate(random_prompts(llm, 1, input_tokens, seed=-1), _exactly(2), progress=False)
    prompts = random_prompts(llm, requests, input_tokens, seed=0)
    begin = time.perf_counter()
    outputs = llm.generate(prompts, _exactly(output_tokens))
    wall = time.perf_counter() - begin
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {
        "requests": requests,
        "wall_s": wall,
        "input_tokens": requests * input_tokens,
        "output_tokens": generated,
        "requests_per_s": requests / wall,
        "output_tokens_per_s": generated / wall,
        "total_tokens_per_s": (requests * input_tokens + generated) / wall,
    }


def random_prompts(llm: LLM, count: int, length: int, *, seed: int) -> list[Any]:
    """`count` prompts of `length` random tokens, none of them special. Raises ConfigError where they cannot fit."""
    config = llm.engine.config
    if length >= config.scheduler.max_model_len:
        raise ConfigError("--input-tokens", f"{length} do not fit a context of {config.scheduler.max_model_len} tokens")
    source = random.Random(seed)
    ordinary = [token for token in range(llm.tokenizer.vocab_size) if token not in llm.tokenizer.special_ids]
    return [source.choices(ordinary, k=length) for _ in range(count)]


def _exactly(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
