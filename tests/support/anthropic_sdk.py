"""Tests with the anthropic SDK as the client, for any server of any model: whoever inherits them gives `root_url`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pytest

MESSAGES = [{"role": "user", "content": "Say something."}]
GREEDY = {"temperature": 0}  # which this version of the SDK has no argument for


class AnthropicSDK:
    """What an Anthropic client expects. Needs a fixture `root_url`, the server's address."""

    @pytest.fixture
    def client(self, root_url: str) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(base_url=root_url, api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    async def async_client(self, root_url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
        async with anthropic.AsyncAnthropic(base_url=root_url, api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    def asked(self, root_url: str) -> dict[str, Any]:
        with openai.OpenAI(base_url=f"{root_url}/v1", api_key="none") as client:
            model = client.models.list().data[0].id
        return {"model": model, "system": "Be brief.", "messages": MESSAGES, "max_tokens": 12, "extra_body": GREEDY}

    def test_message(self, client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
        message = client.messages.create(**asked)
        assert (message.type, message.role, message.model) == ("message", "assistant", asked["model"])
        (block,) = message.content
        assert block.type == "text" and block.text
        assert message.stop_reason in ("end_turn", "max_tokens") and message.stop_sequence is None
        assert 0 < message.usage.output_tokens <= 12 and message._request_id

    def test_count_is_the_messages_own(self, client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
        usage = client.messages.create(**asked).usage
        prompt = {key: asked[key] for key in ("model", "system", "messages")}
        counted = client.messages.count_tokens(**prompt).input_tokens
        assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)

    def test_stream_equals_whole(self, client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
        assert text == whole.content[0].text and final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == whole.usage.output_tokens

    def test_events(self, client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
        kinds = [event.type for event in client.messages.create(**asked, stream=True)]
        kinds = [kind for kind in kinds if kind != "ping"]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert set(kinds[2:-3]) == {"content_block_delta"}

    def test_stop_sequence(self, client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
        text = client.messages.create(**asked).content[0].text
        stop = text[4:6]
        message = client.messages.create(**asked, stop_sequences=[stop])
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
        assert message.content[0].text == text[: text.index(stop)]

    def test_max_tokens(self, client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
        message = client.messages.create(**{**asked, "max_tokens": 2})
        assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 2

    def test_errors(self, client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
        with pytest.raises(anthropic.NotFoundError, match="model: 'claude'") as missing:
            client.messages.create(**{**asked, "model": "claude"})
        assert missing.value.body["type"] == "error" and missing.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError, match="temperature: -1"):
            client.messages.create(**{**asked, "extra_body": {"temperature": -1}})

    async def test_async(self, async_client: anthropic.AsyncAnthropic, asked: dict[str, Any]) -> None:
        whole = await async_client.messages.create(**asked)
        async with async_client.messages.stream(**asked) as stream:
            assert "".join([text async for text in stream.text_stream]) == whole.content[0].text

    async def test_async_stream_left_early(self, async_client: anthropic.AsyncAnthropic, asked: dict[str, Any]) -> None:
        async with await async_client.messages.create(**asked, stream=True) as stream:
            async for _ in stream:
                break
        assert (await async_client.messages.create(**asked)).content
