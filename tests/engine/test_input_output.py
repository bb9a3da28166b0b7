"""Prompts become valid requests or errors that name the field; deltas become text, cut at stop strings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest
import tiny_models

from core.config import CacheConfig, Config, ModelConfig, Options, SchedulerConfig
from core.engine.input import InputProcessor
from core.engine.output import Choice, ChoiceDelta, generate, joined, joined_choice
from core.errors import EngineDead, InvalidRequest
from core.tokenization import Tokenizer
from core.types import DType, EngineRequest, RequestDelta, SamplingParams, TokenLogprobs

CONTEXT = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_models.byte_tokenizer(), special_tokens={"eos_token": "</s>"})


@pytest.fixture
def processor(tokenizer: Tokenizer) -> InputProcessor:
    model = ModelConfig(
        name="tiny",
        path="",
        format="huggingface",
        architecture="LlamaForCausalLM",
        hf_config={},
        dtype=DType.FLOAT32,
        max_model_len=CONTEXT,
        vocab_size=tiny_models.VOCAB,
        eos_token_ids=(2,),
        tokenizer_path="",
    )
    scheduler = SchedulerConfig(max_model_len=CONTEXT)
    return InputProcessor(Config(options=Options(), model=model, cache=CacheConfig(), scheduler=scheduler), tokenizer)


class TestInput:
    def test_each_choice_is_a_request(self, processor: InputProcessor) -> None:
        requests = processor.requests("hello", SamplingParams(n=3, max_tokens=None), request_id="r")
        assert [r.request_id for r in requests] == ["r-0", "r-1", "r-2"]
        assert [r.parent_id for r in requests] == [None, "r-0", "r-0"]
        assert [r.choice_index for r in requests] == [0, 1, 2]
        assert len({r.params.seed for r in requests}) == 1
        assert requests[0].params.seed is not None
        assert requests[0].params.max_tokens == CONTEXT - 5

    def test_a_given_seed_is_kept(self, processor: InputProcessor) -> None:
        (request,) = processor.requests("hello", SamplingParams(seed=-3, max_tokens=4), request_id="r")
        assert (request.params.seed, request.params.max_tokens, request.request_id) == (-3, 4, "r")

    @pytest.mark.parametrize(
        ("prompt", "params", "param"),
        [
            ("", {}, "prompt"),
            ([], {}, "prompt"),
            ("x" * CONTEXT, {"max_tokens": None}, "prompt"),
            ("x" * 10**6, {}, "prompt"),
            ([1, 2, tiny_models.VOCAB], {}, "prompt"),
            ([-1], {}, "prompt"),
            ("\ud800", {}, "prompt"),
            ("x" * 20, {"max_tokens": 13}, "max_tokens"),
            ("x", {"stop_token_ids": (tiny_models.VOCAB,)}, "stop_token_ids"),
            ("x", {"logit_bias": {-1: 1.0}}, "logit_bias"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, processor: InputProcessor, prompt: str | list[int], params: dict, param: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=param) as caught:
            processor.requests(prompt, processor.checked(SamplingParams(**params)), request_id="r")
        assert caught.value.param == param

    def test_what_each_step_goes_through_holds_nothing_twice(self, processor: InputProcessor) -> None:
        params = processor.checked(SamplingParams(allowed_token_ids=(5, 3, 5) * 1000, bad_words=("x", " x", "x")))
        assert params.allowed_token_ids == (5, 3) and len(params.bad_words_token_ids) == 2


class FakeSource:
    """Emits each request's own token ids one by one and notes which requests were closed before their end."""

    def __init__(self, answers: dict[str, Sequence[int]], fail: bool = False) -> None:
        self._answers = answers
        self._fail = fail
        self.aborted: list[str] = []

    async def generate(self, request: EngineRequest) -> AsyncIterator[RequestDelta]:
        answer = self._answers[request.request_id]
        finished = False
        try:
            for i, token in enumerate(answer):
                await asyncio.sleep(0)
                if self._fail and i == 2:
                    raise EngineDead("gone")
                finished = i == len(answer) - 1
                yield RequestDelta(request.request_id, [token], "length" if finished else None)
        finally:
            if not finished:
                self.aborted.append(request.request_id)


async def collect(source: FakeSource, tokenizer: Tokenizer, request: EngineRequest) -> list[ChoiceDelta]:
    return [delta async for delta in generate(source, tokenizer, request)]


class TestOutput:
    def request(self, **params: object) -> EngineRequest:
        settled = SamplingParams(max_tokens=99, seed=0, **params)  # type: ignore[arg-type]
        return EngineRequest(request_id="r", prompt_token_ids=[5], params=settled, choice_index=3)

    def test_tokens_become_text(self, tokenizer: Tokenizer) -> None:
        source = FakeSource({"r": tokenizer.encode("second ü")})
        deltas = asyncio.run(collect(source, tokenizer, self.request()))
        assert "".join(delta.text for delta in deltas) == "second ü"
        assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
        assert {delta.index for delta in deltas} == {3}
        assert source.aborted == []

    def test_a_stop_string_ends_the_choice_and_aborts_the_request(self, tokenizer: Tokenizer) -> None:
        source = FakeSource({"r": tokenizer.encode("abc STOP def")})
        deltas = asyncio.run(collect(source, tokenizer, self.request(stop=("STOP",))))
        assert "".join(delta.text for delta in deltas) == "abc "
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "STOP")
        assert source.aborted == ["r"]

    def test_what_came_with_the_stop_string_and_after_it_is_no_part_of_the_answer(self, tokenizer: Tokenizer) -> None:
        choice = Choice(tokenizer, self.request(stop=("STOP",)))
        before, after = tokenizer.encode("abc STOP"), tokenizer.encode(" def")
        logprobs = [TokenLogprobs(-float(number), 1) for number in range(len(before + after))]
        delta = choice.push(RequestDelta("r", before + after, "length", logprobs=logprobs))
        assert (delta.text, delta.token_ids, delta.logprobs) == ("abc ", before, logprobs[: len(before)])
        assert (delta.finish_reason, delta.stop_reason, choice.finished) == ("stop", "STOP", True)

    def test_closing_aborts(self, tokenizer: Tokenizer) -> None:
        source = FakeSource({"r": tokenizer.encode("a long answer")})

        async def read_a_little() -> None:
            async with aclosing(generate(source, tokenizer, self.request())) as deltas:
                async for _ in deltas:
                    return

        asyncio.run(read_a_little())
        assert source.aborted == ["r"]

    def test_an_error_reaches_the_reader(self, tokenizer: Tokenizer) -> None:
        source = FakeSource({"r": tokenizer.encode("a long answer")}, fail=True)
        with pytest.raises(EngineDead):
            asyncio.run(collect(source, tokenizer, self.request()))


def test_joined_deltas_lose_nothing() -> None:
    known, new = TokenLogprobs(-0.1, 1), TokenLogprobs(-0.2, 1)
    parts = [
        ChoiceDelta(0, "a", [97], [known], num_cached_tokens=3, queue_seconds=0.5, prompt_logprobs=[new]),
        ChoiceDelta(0, "b", [98], [new]),
        ChoiceDelta(0, "", [], None, "abort", pooled=b"vector"),
    ]
    whole = ChoiceDelta(0, "ab", [97, 98], [known, new], "abort", None, 3, None, 0.5, b"vector", [new])
    assert joined_choice(parts) == whole
    told = [RequestDelta("r", [97], queue_seconds=0.5), RequestDelta("r", [], "stop", pooled=b"vector")]
    assert joined(told) == RequestDelta("r", [97], "stop", queue_seconds=0.5, pooled=b"vector")
