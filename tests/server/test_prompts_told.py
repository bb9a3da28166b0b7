"""What completions tell of their prompts, which of several answers they tell, and what stands behind a gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import openai
import pytest
from fake_server import make_tokenizer
from plain_http import post
from tokenizers import AddedToken

from core.errors import InvalidRequest
from core.tokenization import infill_prompt
from core.types import TokenLogprobs

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "say"}]


def streamed(server: Any, **body: Any) -> list[openai.types.CompletionChoice]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        chunks = client.completions.create(model="fake/model", stream=True, **body)
        return [chunk.choices[0] for chunk in chunks if chunk.choices]


# --- logprobs of prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
def test_prompt_logprobs_of_completions(server: Any, n: int) -> None:
    body = {"prompt": [[70, 71, 65], [72]], "n": n, "max_tokens": 2, "prompt_logprobs": 1}
    choices = post(server.url, COMPLETIONS, body)[2]["choices"]
    told = [choice["prompt_logprobs"] for choice in choices]
    assert told == [told[0]] * n + [told[n]] * n and told[n] == [None]
    nothing, second, third = told[0]
    assert nothing is None and second.keys() == {"71", "65"}
    assert second["71"] == {"logprob": -73.0, "rank": 9, "decoded_token": "g"}
    assert second["65"] == {"logprob": -1.25, "rank": 1, "decoded_token": "a"}
    assert third == {"65": second["65"]}  # the alternative is the token itself
    asked = [request.params.prompt_logprobs for request in server.engine.requests]
    assert asked == [1, *[None] * (n - 1)] * 2


def test_prompt_logprobs_of_chats(server: Any) -> None:
    answer = post(server.url, CHAT, {"messages": MESSAGES, "prompt_logprobs": 0})[2]
    prompt = server.engine.requests[0].prompt_token_ids
    assert len(answer["prompt_logprobs"]) == len(prompt) and answer["prompt_logprobs"][0] is None
    assert "prompt_logprobs" not in post(server.url, CHAT, {"messages": MESSAGES})[2]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_with_logprobs(server: Any, stream: bool) -> None:
    body = {"prompt": "hithe", "max_tokens": 3, "echo": True, "logprobs": 2}
    if stream:
        pieces = streamed(server, **body)
        text = "".join(piece.text for piece in pieces)
        found = [piece.logprobs.model_dump() for piece in pieces if piece.logprobs]
        logprobs = {name: [item for each in found for item in each[name]] for name in found[0]}
    else:
        (choice,) = post(server.url, COMPLETIONS, body)[2]["choices"]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text == "hithe" + "the q"
    assert logprobs["tokens"] == ["h", "i", "the", "the", " ", "q"]
    assert logprobs["text_offset"] == [0, 1, 2, 5, 8, 9]
    first, *others = logprobs["token_logprobs"]
    assert first is None and others[2:] == [-0.5] * 3 and all(value < -2 for value in others[:2])
    assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][1].keys() == {"i", "a", "b"}


def test_an_echo_alone(server: Any) -> None:
    """Harnesses score texts so: no token of an answer, the prompt's logprobs."""
    body = {"prompt": "hithe", "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = post(server.url, COMPLETIONS, body)[2]["choices"]
    assert choice["text"] == "hithe" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["h", "i", "the"]
    assert "".join(piece.text for piece in streamed(server, **body)) == "hithe"


# --- the best of several -------------------------------------------------------------------------------------


def test_the_best_by_logprob_per_token_are_told(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each choice's tokens are as likely as its index says, so that the last are the best."""
    original = type(server.engine)._deltas

    def deltas(engine: Any, request: Any) -> Any:
        engine.answer = "abcdefghij"[request.choice_index] * (request.choice_index + 1)
        for delta in original(engine, request):
            logprobs = [TokenLogprobs(-1.0 / (1 + request.choice_index), 1)] if delta.logprobs else None
            yield msgspec.structs.replace(delta, logprobs=logprobs)

    monkeypatch.setattr(type(server.engine), "_deltas", deltas)
    body = {"prompt": ["x", "y"], "n": 2, "best_of": 4, "max_tokens": 8}
    answer = post(server.url, COMPLETIONS, body)[2]
    assert [choice["text"] for choice in answer["choices"]] == ["dddd", "ccc"] * 2
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 2 * (2 + 3 + 4 + 5)  # those left out were made too
    told = post(server.url, COMPLETIONS, {**body, "logprobs": 1, "return_token_ids": True})[2]["choices"]
    assert [len(choice["token_ids"]) for choice in told] == [5, 4] * 2
    assert told[0]["logprobs"]["token_logprobs"] == [-0.25] * 5


# --- filling in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "prompt"),
    [
        (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], "<|fim_prefix|>AB<|fim_suffix|>YZ<|fim_middle|>"),
        (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], "<fim_prefix>AB<fim_suffix>YZ<fim_middle>"),
        (["[SUFFIX]", "[PREFIX]"], "[SUFFIX]YZ[PREFIX]AB"),
    ],
)
def test_a_gap_is_marked_as_the_model_knows_it(tokens: list[str], prompt: str) -> None:
    tokenizer = make_tokenizer(None)
    with pytest.raises(InvalidRequest, match="suffix"):
        infill_prompt(tokenizer, "AB", "YZ")
    tokenizer.backend.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    assert infill_prompt(tokenizer, "AB", "YZ") == prompt


def test_a_suffix_reaches_the_model(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    monkeypatch.setattr("core.server.routes.completions.infill_prompt", lambda _, before, after: f"{after}|{before}")
    answer = post(server.url, COMPLETIONS, {"prompt": ["a", "b"], "suffix": "z", "echo": True, "max_tokens": 1})[2]
    prompts = [server.engine._tokenizer.decode(request.prompt_token_ids) for request in server.engine.requests]
    assert sorted(prompts) == ["z|a", "z|b"]
    assert [choice["text"][0] for choice in answer["choices"]] == ["a", "b"]


# --- tokens ruled out ----------------------------------------------------------------------------------------


def test_bad_words_and_allowed_tokens_reach_the_engine(server: Any) -> None:
    body = {
        "prompt": "a",
        "bad_words": ["the", " x"],
        "allowed_token_ids": [1, 2],
        "spaces_between_special_tokens": True,
    }
    assert post(server.url, COMPLETIONS, body)[0] == 200
    params, tokenizer = server.engine.requests[0].params, server.engine._tokenizer
    spellings = [tokenizer.decode(spelling) for spelling in params.bad_words_token_ids]
    assert spellings == ["the", " the", "x", " x"]
    assert params.allowed_token_ids == (1, 2) and params.spaces_between_special_tokens
