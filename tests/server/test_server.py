"""Answers, streams, engine errors, clients that leave, operators' routes: over HTTP, on an engine from a script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from core.errors import EngineDead, QueueFull
from core.server.options import ServerOptions
from core.server.sse import ChunkWriter

COMPLETION = {"prompt": "say", "max_tokens": 100}
CHAT = {"messages": [{"role": "user", "content": "say"}], "max_tokens": 100}


async def post(url: str, body: dict, route: str = "/v1/completions", **arguments: Any) -> tuple[int, Any, dict]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + route, json=body, **arguments) as response,
    ):
        return response.status, response.headers, await response.json()


async def get(url: str, **arguments: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, **arguments) as response:
        return response.status, await response.text()


async def events(url: str, body: dict, route: str = "/v1/completions") -> list[Any]:
    """The events of a stream, after checking that it ends as it must."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + route, json={**body, "stream": True}) as response,
    ):
        assert response.status == 200 and response.content_type == "text/event-stream"
        *found, done, rest = (await response.read()).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in found]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# --- answers -------------------------------------------------------------------------------------------------


async def test_completion_in_full(server: Any) -> None:
    status, headers, body = await post(server.url, COMPLETION, headers={"X-Request-Id": "mine"})
    assert status == 200 and headers["X-Request-Id"] == "mine"
    assert body.pop("id").startswith("cmpl-") and body.pop("created") > 0
    (request,) = server.engine.requests
    tokens = len(request.output_token_ids)
    prompt = len(request.prompt_token_ids)
    assert body == {
        "object": "text_completion",
        "model": "fake/model",
        "system_fingerprint": "core-0.1.0-01234567",
        "choices": [
            {"index": 0, "text": server.engine.answer, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


async def test_chat_in_full(server: Any) -> None:
    body = (await post(server.url, CHAT, "/v1/chat/completions"))[2]
    message = {"content": server.engine.answer, "role": "assistant", "refusal": None}
    assert body["choices"] == [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]


async def test_parameters_reach_the_engine(server: Any) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.5, "logit_bias": {"5": 1.0}, "min_tokens": 2,
        "max_tokens": 9, "skip_special_tokens": False, "include_stop_str_in_output": True, "logprobs": 1,
    }  # fmt: skip
    extras = {"stop": ["zz"], "stop_token_ids": [7], "priority": 4, "cache_salt": "s", "deadline_ms": 60_000}
    assert (await post(server.url, {"prompt": [5, 6], **given, **extras}))[0] == 200
    (request,) = server.engine.requests
    assert request.prompt_token_ids == [5, 6] and request.priority == 4 and request.cache_salt == "s"
    assert 50 < request.deadline - request.arrival_time <= 60
    assert request.params.stop == ("zz",) and request.params.stop_token_ids == (7,)
    assert {**given, "logit_bias": {5: 1.0}} == {name: getattr(request.params, name) for name in given}


async def test_the_models_own_sampling_defaults(serve: Callable[..., Any]) -> None:
    server = serve(default_sampling={"temperature": 0.2, "top_k": 5})
    await post(server.url, {**COMPLETION, "top_k": 9})
    assert (server.engine.requests[0].params.temperature, server.engine.requests[0].params.top_k) == (0.2, 9)


async def test_default_lengths(server: Any) -> None:
    await post(server.url, {"prompt": "say"})
    await post(server.url, {"messages": CHAT["messages"], "max_completion_tokens": 5}, "/v1/chat/completions")
    await post(server.url, {"messages": CHAT["messages"]}, "/v1/chat/completions")
    limits = [request.params.max_tokens for request in server.engine.requests]
    assert limits == [16, 5, 512 - len(server.engine.requests[2].prompt_token_ids)]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo(server: Any, stream: bool) -> None:
    body = {"prompt": ["one ", "two "], "n": 2, "max_tokens": 2, "echo": True}
    texts = [""] * 4
    for part in await events(server.url, body) if stream else [(await post(server.url, body))[2]]:
        for choice in part["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["one the ", "one the ", "two the ", "two the "]


async def test_logprobs_without_infinities(server: Any) -> None:
    body = (await post(server.url, {**COMPLETION, "max_tokens": 1, "logprobs": 3}))[2]
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-0.5] and -9999.0 in logprobs["top_logprobs"][0].values()


async def test_conversation_continued(server: Any) -> None:
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "well"}]
    await post(server.url, {"messages": messages, "continue_final_message": True}, "/v1/chat/completions")
    text = server.engine._tokenizer.decode(server.engine.requests[0].prompt_token_ids)
    assert text == "<|user|>say\n<|assistant|>well"


async def test_model_without_chat_template(serve: Callable[..., Any]) -> None:
    server = serve(template=None)
    status, _, body = await post(server.url, CHAT, "/v1/chat/completions")
    assert status == 400 and body["error"]["code"] == "no_chat_template"


# --- streams -------------------------------------------------------------------------------------------------


async def test_stream_chunks(server: Any) -> None:
    chunks = await events(server.url, {**CHAT, "stream_options": {"include_usage": True}}, "/v1/chat/completions")
    *pieces, last = chunks
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(piece["usage"] is None and len(piece["choices"]) == 1 for piece in pieces)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_no_usage_unless_asked(server: Any) -> None:
    assert all("usage" not in chunk for chunk in await events(server.url, COMPLETION))


async def test_continuous_usage(server: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        chunk["usage"]["completion_tokens"]
        for chunk in await events(server.url, {**COMPLETION, "stream_options": options})
    ]
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == len(server.engine.requests[0].output_token_ids)


async def test_half_a_character_is_never_sent(server: Any) -> None:
    server.engine.answer = "naïve 漢字 👩‍👩‍👧 end"
    chunks = await events(server.url, COMPLETION)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == server.engine.answer
    assert all("\ufffd" not in chunk["choices"][0]["text"] for chunk in chunks)


# --- errors of the engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull("4096 requests are waiting", retry_after_s=2.5), 429, "queue_full"),
        (EngineDead("killed by SIGSEGV"), 503, "engine_dead"),
        (RuntimeError("a secret of ours"), 500, "internal_error"),
    ],
)
async def test_error_before_the_first_token(
    server: Any, stream: bool, error: Exception, status: int, code: str
) -> None:
    server.engine.error = error
    found, headers, body = await post(server.url, {**COMPLETION, "stream": stream}, headers={"X-Request-Id": "r1"})
    assert (found, body["error"]["code"]) == (status, code)
    assert "secret" not in body["error"]["message"]
    if status == 429:
        assert headers["Retry-After"] == "3"
    if status == 500:
        assert "r1" in body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_deadline_before_the_first_token(server: Any, stream: bool) -> None:
    server.engine.finish = "deadline"
    status, _, body = await post(server.url, {**COMPLETION, "deadline_ms": 1, "stream": stream})
    assert status == 408 and body["error"]["param"] == "deadline_ms"


async def test_engine_gives_up_a_request(server: Any) -> None:
    server.engine.finish, server.engine.reason = "error", "3 engines died"
    status, _, body = await post(server.url, COMPLETION)
    assert status == 500 and (body["error"]["code"], body["error"]["message"]) == ("engine_error", "3 engines died")


async def test_error_inside_a_stream(server: Any) -> None:
    server.engine.error_after = (2, EngineDead("killed by SIGKILL"))
    *pieces, error = await events(server.url, COMPLETION)
    assert pieces and error["error"]["code"] == "engine_dead"


# --- the log -------------------------------------------------------------------------------------------------


async def test_each_request_is_one_line_without_its_text(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="core.server")
    await post(server.url, {"prompt": "a secret", "max_tokens": 3}, headers={"X-Request-Id": "mine"})
    await post(server.url, {"prompt": "a secret", "temperature": -1}, headers={"X-Request-Id": "refused"})
    await get(f"{server.url}/metrics", headers={"X-Request-Id": "not logged"})

    def logged() -> dict[str, Any]:
        """By id: a request of another test may end only now."""
        found = [vars(record)["fields"] for record in caplog.records if record.message == "request"]
        return {fields["request_id"]: fields for fields in found}

    while not {"mine", "refused"} <= logged().keys():  # a line is written once the answer is out
        await asyncio.sleep(0.01)
    fields, refused = logged()["mine"], logged()["refused"]
    assert "not logged" not in logged()
    assert (fields["route"], fields["status"]) == ("POST /v1/completions", 200)
    assert (fields["prompt_tokens"], fields["output_tokens"]) == (8, 3)
    assert 0 < fields["ttft_s"] <= fields["seconds"]
    assert refused["status"] == 400 and "ttft_s" not in refused
    assert "secret" not in caplog.text


async def test_the_log_of_requests_can_be_turned_off(
    serve: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="core.server")
    url = serve(ServerOptions(log_requests=False)).url
    for _ in range(2):  # the first one's line would be out by the second's answer
        assert (await post(url, COMPLETION, headers={"X-Request-Id": "quiet"}))[0] == 200
    assert not [record for record in caplog.records if "'quiet'" in str(vars(record).get("fields"))]


async def test_a_client_that_is_gone_when_its_stream_ends_leaves_no_traceback(
    server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = ChunkWriter.close

    async def gone(self: ChunkWriter) -> web.StreamResponse:
        self._response._req.transport.close()
        return await close(self)

    monkeypatch.setattr(ChunkWriter, "close", gone)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/completions", json={**COMPLETION, "stream": True}) as response,
    ):
        with pytest.raises(aiohttp.ClientError):
            while await response.content.readline():
                pass
    assert [record for record in caplog.records if record.levelname not in ("DEBUG", "INFO")] == []


# --- clients that leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_requests(server: Any, stream: bool) -> None:
    server.engine.stall_after = 2  # so nothing is being written when it leaves
    body = {**COMPLETION, "n": 3, "stream": stream}
    async with aiohttp.ClientSession() as session:
        request = asyncio.create_task(session.post(f"{server.url}/v1/completions", json=body))
        await until(lambda: sum(len(one.output_token_ids) for one in server.engine.requests) == 6)
        assert server.engine.aborted == []
        if stream:
            (await request).close()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await until(lambda: len(server.engine.aborted) == 3)
    assert set(server.engine.aborted) == {one.request_id for one in server.engine.requests}


async def test_stop_string_aborts_in_the_engine(server: Any) -> None:
    body = (await post(server.url, {**COMPLETION, "stop": ["zzz", " fox"]}))[2]
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("the quick brown", "stop", " fox")
    assert server.engine.aborted == [server.engine.requests[0].request_id]


async def test_equal_request_ids_do_not_collide(server: Any) -> None:
    answers = await asyncio.gather(*(post(server.url, {**COMPLETION, "request_id": "x"}) for _ in range(4)))
    assert {answer[2]["id"] for answer in answers} == {"cmpl-x"}
    assert len({request.request_id for request in server.engine.requests}) == 4


# --- operators -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "ready", "live", "completion"),
    [
        ("ready", 200, 200, 200),
        ("loading", 503, 200, 503),
        ("restarting", 503, 200, 200),
        ("draining", 503, 200, 503),
        ("failed", 503, 503, 503),
    ],
)
async def test_states(server: Any, state: str, ready: int, live: int, completion: int) -> None:
    server.engine.state = state
    status, text = await get(f"{server.url}/readyz")
    assert status == ready and (await get(f"{server.url}/health"))[0] == ready
    assert msgspec.json.decode(text) == {
        "state": state, "stage": "reading weights", "progress": 0.25, "restarts": 0, "message": "a message",
    }  # fmt: skip
    assert (await get(f"{server.url}/livez"))[0] == live
    assert (await post(server.url, COMPLETION))[0] == completion


async def test_metrics(serve: Callable[..., Any]) -> None:
    server = serve()
    await post(server.url, {**COMPLETION, "n": 2, "max_tokens": 5})
    _, text = await get(f"{server.url}/metrics")
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = 'model_name="fake/model"'
    assert figures[f"core:num_requests_running{{{label}}}"] == "2.0"
    assert figures[f"core:generation_tokens_total{{{label}}}"] == "11.0"
    assert figures[f"core:time_to_first_token_seconds_count{{{label}}}"] == "2.0"
    assert figures[f'core:request_success_total{{finished_reason="length",{label}}}'] == "2.0"
    assert figures[f"core:request_generation_tokens_sum{{{label}}}"] == "10.0"
    assert figures[f"core:engine_up{{{label}}}"] == "1.0"


async def test_metrics_of_http(serve: Callable[..., Any]) -> None:
    server = serve(ServerOptions(metrics_prefix="vllm:"))
    await post(server.url, COMPLETION)
    await post(server.url, {**COMPLETION, "temperature": "hot"})
    for path in ("/no/such", "/nor/this"):
        await get(server.url + path)
    _, text = await get(f"{server.url}/metrics")
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    for status in ("2xx", "4xx"):
        label = f'handler="/v1/completions",method="POST",status="{status}"'
        assert figures[f"http_requests_total{{{label}}}"] == "1.0"
    assert figures['http_requests_total{handler="none",method="GET",status="4xx"}'] == "2.0"
    assert figures['http_request_duration_seconds_count{handler="/v1/completions",method="POST"}'] == "2.0"
    assert figures['vllm:engine_up{model_name="fake/model"}'] == "1.0" and "core:" not in text


async def test_metrics_without_an_engine(server: Any) -> None:
    server.engine.stalls_stats = True
    text = (await get(f"{server.url}/metrics"))[1]
    assert 'core:engine_up{model_name="fake/model"} 0.0' in text and "num_requests_running" not in text


async def test_version_and_index(server: Any) -> None:
    assert msgspec.json.decode((await get(f"{server.url}/version"))[1]) == {
        "version": "0.1.0",
        "usage_source": "unknown",
    }
    assert "/v1/chat/completions" in msgspec.json.decode((await get(f"{server.url}/"))[1])["endpoints"]


async def test_api_keys(serve: Callable[..., Any]) -> None:
    server = serve(ServerOptions(api_key=("one", "two")))
    for key, status in ((None, 401), ("three", 401), ("one", 200), ("two", 200)):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        assert (await get(f"{server.url}/v1/models", headers=headers))[0] == status
    assert (await get(f"{server.url}/livez"))[0] == 200


@pytest.mark.parametrize(
    ("mode", "misspelt", "strange"), [("auto", 400, 200), ("ignore", 200, 200), ("warn", 200, 200), ("error", 400, 400)]
)
async def test_unknown_field_modes(serve: Callable[..., Any], mode: Any, misspelt: int, strange: int) -> None:
    server = serve(ServerOptions(unknown_fields=mode))
    assert (await post(server.url, {**COMPLETION, "temprature": 1}))[0] == misspelt
    assert (await post(server.url, {**COMPLETION, "zzz": 1}))[0] == strange
