"""In float32 the engine's greedy tokens are transformers' own, whatever the batch, the chunks, the cache or the platform."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
import tiny_models

from core import LLM, SamplingParams

PROMPTS = 20
TOKENS = 64
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
ROPE_AND_WINDOWS = sorted(set(tiny_models.FAMILIES) - set(FAMILIES))
#: Each architecture on every platform; what differs only in the numbers of a layer, on one.
CASES = [(family, platform) for family in FAMILIES for platform in ("cpu", "static", "fakegraph")]
CASES += [(family, "cpu") for family in ROPE_AND_WINDOWS]

SHORT = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)

TEXTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived a",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "Explain in one sentence why the sky is blue.",
    "1, 2, 3, 5, 8, 13,",
    "My favourite recipe begins with two onions,",
    "The three laws of motion are",
    "Dear Sir or Madam,",
    "SELECT name FROM users WHERE",
    "La révolution française a commencé en",
    "In the beginning",
    "A haiku about autumn leaves:",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "Q: What is the largest planet?\nA:",
    "import numpy as np\n\nx = np.",
    "The train leaves at noon and",
    "Photosynthesis is the process by which",
    "She opened the letter and",
    "To be, or not to be,",
]


def random_prompts(seed: int, count: int = PROMPTS, longest: int = 90) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [1, 15, 16, 17, longest, *(rng.randrange(2, longest) for _ in range(count - 5))]
    return [[rng.randrange(3, tiny_models.VOCAB) for _ in range(length)] for length in lengths[:count]]


def tokens(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, progress=False)]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A family and a platform."""
    family, platform = request.param
    return family, platform


@pytest.fixture
def engine(
    case: tuple[str, str], tiny_model: Callable[[str], Path], test_platforms: None
) -> Iterator[Callable[..., LLM]]:
    """Makes engines of the case, and closes them."""
    family, platform = case
    made: list[LLM] = []

    def make(**options: object) -> LLM:
        defaults = {"platform": platform, "dtype": "float32", "max_num_seqs": 32, "max_model_len": 160}
        made.append(LLM(str(tiny_model(family)), progress=False, **{**defaults, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for llm in made:
        llm.close()


class TestTinyModels:
    def test_equals_transformers(self, engine: Callable[..., LLM], case: tuple[str, str]) -> None:
        reference = tiny_models.build(case[0])
        prompts = random_prompts(0)
        for prompt, output in zip(prompts, tokens(engine(), prompts), strict=True):
            assert len(output) == TOKENS
            oracle.assert_greedy(reference, prompt, output)

    def test_batch_chunks_cache_and_preemption_change_nothing(self, engine: Callable[..., LLM]) -> None:
        prompts = random_prompts(1, count=32)
        plain = engine(enable_prefix_caching=False)
        alone = [tokens(plain, [prompt], SHORT)[0] for prompt in prompts[:8]]
        together = tokens(plain, prompts, SHORT)
        assert together[:8] == alone

        chunked = engine(enable_prefix_caching=True, max_num_batched_tokens=32)
        assert tokens(chunked, prompts, SHORT) == together, "chunked prefill"
        hits = chunked.engine.stats().prefix_hits
        assert tokens(chunked, prompts, SHORT) == together, "with the prefix cache hit"
        assert chunked.engine.stats().prefix_hits > hits

    def test_preemption_changes_nothing(self, engine: Callable[..., LLM]) -> None:
        prompts = random_prompts(2, count=16)
        expected = tokens(engine(enable_prefix_caching=False), prompts, SHORT)
        plan = engine().engine.memory_plan
        blocks = 160 // plan.block_size + 4
        scarce = engine(kv_cache_memory=f"{blocks * plan.kv_block_bytes}B")
        assert tokens(scarce, prompts, SHORT) == expected
        assert scarce.engine.stats().preemptions > 0

    def test_choices_share_a_prompt(self, engine: Callable[..., LLM]) -> None:
        llm = engine()
        (prompt,) = random_prompts(3, count=1, longest=40)
        prompt = prompt * 23
        several = SamplingParams(n=4, temperature=1.0, seed=7, max_tokens=24, ignore_eos=True)
        (together,) = llm.generate([prompt], several, progress=False)
        assert len({tuple(choice.token_ids) for choice in together.outputs}) == 4
        again = llm.generate([prompt], several, progress=False)[0]
        assert [c.token_ids for c in again.outputs] == [c.token_ids for c in together.outputs]


@pytest.fixture(scope="module")
def smollm2(demo_model: str) -> Iterator[LLM]:
    with LLM(demo_model, dtype="float32", max_model_len=1024, max_num_seqs=32, progress=False) as made:
        yield made


@pytest.mark.slow
class TestSmolLM2:
    def test_equals_transformers(self, smollm2: LLM, demo_model: str) -> None:
        model = oracle.gguf_llama(demo_model)
        for output in smollm2.generate(TEXTS, GREEDY, progress=False):
            assert len(output.outputs[0].token_ids) == TOKENS
            oracle.assert_greedy(model, output.prompt_token_ids, output.outputs[0].token_ids)

    def test_alone_equals_together(self, smollm2: LLM) -> None:
        together = smollm2.generate(TEXTS, GREEDY, progress=False)
        for text, output in list(zip(TEXTS, together, strict=True))[:4]:
            (alone,) = smollm2.generate([text], GREEDY, progress=False)
            assert alone.outputs[0].token_ids == output.outputs[0].token_ids

    @pytest.mark.parametrize("platform", ["static", "fakegraph"])
    def test_other_platforms_give_the_same(
        self, smollm2: LLM, demo_model: str, platform: str, test_platforms: None
    ) -> None:
        short = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        expected = [output.outputs[0].token_ids for output in smollm2.generate(TEXTS, short, progress=False)]
        options = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 32, "progress": False}
        with LLM(demo_model, platform=platform, **options) as other:  # type: ignore[arg-type]
            outputs = other.generate(TEXTS, short, progress=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected


@pytest.mark.slow
def test_bfloat16_stays_close_to_float32(demo_model: str) -> None:
    """The chosen token's logprob differs from float32's by at most 0.03 on average and 0.12 at the 99th percentile."""
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    model = oracle.gguf_llama(demo_model)
    differences: list[float] = []
    with LLM(demo_model, dtype="bfloat16", max_model_len=1024, progress=False) as llm:
        for output in llm.generate(TEXTS, params, progress=False):
            choice = output.outputs[0]
            exact = oracle.logprobs(model, output.prompt_token_ids, choice.token_ids)
            assert choice.logprobs is not None
            for position, (token, found) in enumerate(zip(choice.token_ids, choice.logprobs, strict=True)):
                differences.append(abs(found.logprob - float(exact[position, token])))
    differences.sort()
    mean, p99 = sum(differences) / len(differences), differences[round(0.99 * (len(differences) - 1))]
    print(f"logprob difference of {len(differences)} tokens: mean {mean:.4f}, p99 {p99:.4f}")
    assert mean <= 0.03
    assert p99 <= 0.12
