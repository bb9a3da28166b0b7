"""Tests with the openai SDK as the client, for any server of any model: whoever inherits them gives `base_url`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]


class OpenAISDK:
    """What an OpenAI client expects. Needs a fixture `base_url`, which ends in /v1."""

    @pytest.fixture
    def client(self, base_url: str) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    async def async_client(self, base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    def model(self, client: openai.OpenAI) -> str:
        return client.models.list().data[0].id

    def test_models(self, client: openai.OpenAI, model: str) -> None:
        assert client.models.retrieve(model).id == model
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("no-such-model")
        assert caught.value.code == "model_not_found"

    def test_chat(self, client: openai.OpenAI, model: str) -> None:
        answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, temperature=0)
        assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
        (choice,) = answer.choices
        assert choice.message.role == "assistant" and choice.message.content
        assert choice.finish_reason in ("length", "stop")
        assert answer.usage.completion_tokens <= 8
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_chat_stream_equals_whole(self, client: openai.OpenAI, model: str) -> None:
        request = {"model": model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
        whole = client.chat.completions.create(**request)
        chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
        *pieces, last = chunks
        assert pieces[0].choices[0].delta.role == "assistant"
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
        assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
        assert len({chunk.id for chunk in chunks}) == 1

    def test_completion_stream_equals_whole(self, client: openai.OpenAI, model: str) -> None:
        request = {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
        whole = client.completions.create(**request)
        assert whole.object == "text_completion" and whole.choices[0].text
        text = "".join(chunk.choices[0].text for chunk in client.completions.create(**request, stream=True))
        assert text == whole.choices[0].text

    def test_n_choices(self, client: openai.OpenAI, model: str) -> None:
        request = {"model": model, "prompt": ["One", "Two"], "n": 3, "max_tokens": 4, "seed": 1}
        whole = client.completions.create(**request)
        assert [choice.index for choice in whole.choices] == [0, 1, 2, 3, 4, 5]
        texts = [""] * 6
        for chunk in client.completions.create(**request, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in whole.choices]

    def test_stop_string(self, client: openai.OpenAI, model: str) -> None:
        request = {"model": model, "prompt": "Count:", "max_tokens": 16, "temperature": 0}
        text = client.completions.create(**request).choices[0].text
        stop = text[4:6]
        choice = client.completions.create(**request, stop=stop).choices[0]
        assert choice.finish_reason == "stop" and choice.text == text[: text.index(stop)]
        assert choice.model_extra["stop_reason"] == stop

    def test_completion_logprobs(self, client: openai.OpenAI, model: str) -> None:
        answer = client.completions.create(model=model, prompt="Hello", max_tokens=3, temperature=0, logprobs=2)
        logprobs = answer.choices[0].logprobs
        count = answer.usage.completion_tokens
        assert [len(part) for part in (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset)] == [count] * 3
        assert all(value <= 0 for value in logprobs.token_logprobs)
        assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))
        assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]

    def test_chat_logprobs(self, client: openai.OpenAI, model: str) -> None:
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
        )
        content = answer.choices[0].logprobs.content
        assert len(content) == answer.usage.completion_tokens
        for entry in content:
            assert math.isfinite(entry.logprob) and len(entry.top_logprobs) == 2
            assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token

    def test_errors(self, client: openai.OpenAI, model: str) -> None:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-4", messages=MESSAGES)
        assert missing.value.param == "model"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model=model, messages=MESSAGES, temperature=-1)
        assert wrong.value.param == "temperature" and "-1" in wrong.value.message
        with pytest.raises(openai.BadRequestError) as misspelt:
            client.chat.completions.create(model=model, messages=MESSAGES, extra_body={"temprature": 1})
        assert "'temperature'" in misspelt.value.message

    async def test_async_chat_stream(self, async_client: openai.AsyncOpenAI) -> None:
        model = (await async_client.models.list()).data[0].id
        stream = await async_client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=5, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(parts)

    async def test_async_stream_left_early(self, async_client: openai.AsyncOpenAI) -> None:
        model = (await async_client.models.list()).data[0].id
        request = {"model": model, "prompt": "Go on", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
        stream = await async_client.completions.create(**request, stream=True)
        async for _ in stream:
            break
        await stream.close()
        assert (await async_client.completions.create(model=model, prompt="Again", max_tokens=2)).choices[0].text
