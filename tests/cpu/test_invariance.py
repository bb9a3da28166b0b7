"""What `batch_invariant` promises, in both element types: a request's logits are the same bits in any company.

Seen through the log probabilities of the likeliest tokens: a bit of difference in the logits changes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from core import LLM, SamplingParams
from platforms._shared import _native

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=5)
BLOCK = 16

Seen = list[tuple[list[int], list[list[tuple[int, float]]]]]


@pytest.fixture(params=[("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "int8")], ids="/".join)
def engine(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Iterator[Callable[..., LLM]]:
    """Makes engines of a tiny model, and closes them."""
    made: list[LLM] = []
    path, threads = str(tiny_model("llama")), _native.num_threads()

    def make(**options: Any) -> LLM:
        dtype, kv_dtype = request.param
        defaults = {
            "platform": "cpu",
            "dtype": dtype,
            "kv_cache_dtype": kv_dtype,
            "max_num_seqs": 16,
            "max_model_len": 160,
        }
        made.append(LLM(path, progress=False, **{**defaults, **options}))
        return made[-1]

    yield make
    for llm in made:
        llm.close()
    _native.set_num_threads(threads)


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, tiny_models.VOCAB) for _ in range(rng.randrange(2, 100))] for _ in range(count)]


def seen(llm: LLM, given: Sequence[list[int]]) -> Seen:
    """Tokens and the log probabilities at each position, of each prompt."""
    found: Seen = []
    for output in llm.generate(list(given), PARAMS, progress=False):
        choice = output.outputs[0]
        assert choice.logprobs is not None
        found.append((list(choice.token_ids), [list(position.top) for position in choice.logprobs]))
    return found


def test_alone_or_batched(engine: Callable[..., LLM]) -> None:
    llm, given = engine(enable_prefix_caching=False), prompts(16)
    together = seen(llm, given)
    assert [seen(llm, [prompt])[0] for prompt in given[:6]] == together[:6]


def test_chunked_or_whole(engine: Callable[..., LLM]) -> None:
    given = prompts(12)
    whole = seen(engine(enable_prefix_caching=False), given)
    for chunk in (16, 23):
        assert seen(engine(enable_prefix_caching=False, max_num_batched_tokens=chunk), given) == whole


def test_prefix_hit_or_miss(engine: Callable[..., LLM]) -> None:
    given = prompts(12)
    missed = seen(engine(enable_prefix_caching=False), given)
    llm = engine(enable_prefix_caching=True)
    assert seen(llm, given) == missed
    hits = llm.engine.stats().prefix_hits
    assert seen(llm, given) == missed
    assert llm.engine.stats().prefix_hits > hits


def test_preempted_or_not(engine: Callable[..., LLM]) -> None:
    given = prompts(12)
    llm = engine(enable_prefix_caching=False)
    expected = seen(llm, given)
    blocks = 160 // BLOCK + 4
    scarce = engine(kv_cache_memory=f"{blocks * llm.engine.memory_plan.kv_block_bytes}B")
    assert seen(scarce, given) == expected
    assert scarce.engine.stats().preemptions > 0


def test_one_thread_or_more(engine: Callable[..., LLM]) -> None:
    llm, given = engine(enable_prefix_caching=False), prompts(12)
    found = []
    for threads in (1, 2, 3):
        _native.set_num_threads(threads)
        found.append(seen(llm, given))
    assert found[0] == found[1] == found[2]


def test_replayed_or_op_by_op(engine: Callable[..., LLM]) -> None:
    given = prompts(8)
    assert seen(engine(compile=False), given) == seen(engine(), given)
