"""Routes and metrics sinks of plugins, over HTTP."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from core.errors import PluginLoadError, QueueFull
from core.extensions import Extensions
from core.server.options import ServerOptions

ROUTES = """
import asyncio
import msgspec
from aiohttp import web
from core.errors import InvalidRequest

def routes(context):
    async def shout(request):
        body = await request.json()
        generation = await context.generate(request, body.pop("prompt"), body.pop("sampling", {}), **body)
        texts = {}
        async for delta in generation.deltas():
            texts[delta.index] = texts.get(delta.index, "") + delta.text.upper()
        return web.json_response({
            "id": generation.id, "texts": [texts[index] for index in sorted(texts)], "usage": generation.usage(),
            "model": context.model, "word": context.options.get("word"),
        })

    async def prompt(request):
        return web.json_response({"prompt": context.chat_prompt([{"role": "user", "content": "Hi"}])})

    async def fail(request):
        raise OSError("a secret of ours")

    async def refuse(request):
        raise InvalidRequest("word: it is missing", param="word")

    async def nothing(request):
        return None

    async def half(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"the first half")
        raise OSError("a secret of ours")

    return [
        web.post("/v1/shout", shout), web.post("/shout", shout), web.get("/prompt", prompt), web.get("/fail", fail),
        web.get("/refuse", refuse), web.get("/nothing", nothing), web.get("/half", half),
    ]
"""
HOOKS = {"server_routes": {"shout": "routes"}}

Serve = Callable[..., Any]
Install = Callable[..., Extensions]


async def send(method: str, url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, json=body, headers=headers) as response,
    ):
        return response.status, await response.json()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def server(serve: Serve, install: Install) -> Any:
    return serve(extensions=install("loud", ROUTES, plugin_opt=("loud.word=hey",), **HOOKS))


# --- routes --------------------------------------------------------------------------------------------------


async def test_a_route_generates_as_the_cores_own_do(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="core.server")
    sampling = {"max_tokens": 2, "n": 2, "temperature": 0.5}
    status, body = await send(
        "POST",
        f"{server.url}/shout",
        {"prompt": "say", "sampling": sampling, "priority": 3},
        **{"X-Request-Id": "shouted"},
    )
    assert status == 200 and body.pop("id").startswith("loud-")
    assert body == {"texts": ["THE ", "THE "], "usage": [3, 4], "model": "fake/model", "word": "hey"}
    first, second = server.engine.requests
    assert (first.params.temperature, first.priority, second.parent_id) == (0.5, 3, first.request_id)

    def logged() -> list[dict[str, Any]]:
        found = [vars(record)["fields"] for record in caplog.records if record.message == "request"]
        return [fields for fields in found if fields["request_id"] == "shouted"]

    await until(logged)
    (fields,) = logged()
    assert (fields["route"], fields["prompt_tokens"], fields["output_tokens"]) == ("POST /shout", 3, 4)
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as response:
        assert (
            'core:request_success_total{finished_reason="length",model_name="fake/model"} 2.0' in await response.text()
        )


async def test_what_a_route_leaves_out_is_the_models_default(serve: Serve, install: Install) -> None:
    server = serve(extensions=install("loud", ROUTES, **HOOKS), default_sampling={"temperature": 0.25, "top_k": 7})
    await send("POST", f"{server.url}/v1/shout", {"prompt": [5, 6], "sampling": {"top_k": 9}})
    (request,) = server.engine.requests
    assert request.prompt_token_ids == [5, 6]
    assert (request.params.temperature, request.params.top_k, request.params.max_tokens) == (0.25, 9, 16)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "a", "sampling": {"temperature": -1}}, 400, "temperature"),
        ({"prompt": "a", "sampling": {"temperature": "hot"}}, 400, "temperature"),
        ({"prompt": "a", "sampling": {"temprature": 1}}, 400, "temprature"),
        ({"prompt": "a", "sampling": {"max_tokens": 1000}}, 400, "max_tokens"),
    ],
)
async def test_admission_refuses_by_name(server: Any, body: dict[str, Any], status: int, param: str) -> None:
    found, answer = await send("POST", f"{server.url}/v1/shout", body)
    assert (found, answer["error"]["param"]) == (status, param)
    assert server.engine.requests == []


async def test_a_route_waits_for_the_model(server: Any) -> None:
    server.engine.state = "loading"
    assert (await send("POST", f"{server.url}/v1/shout", {"prompt": "a"}))[0] == 503


async def test_a_route_renders_a_conversation(server: Any) -> None:
    assert (await send("GET", f"{server.url}/prompt"))[1] == {"prompt": "<|user|>Hi\n<|assistant|>"}


async def test_a_client_that_leaves_ends_its_generation(server: Any) -> None:
    server.engine.stall_after = 2
    async with aiohttp.ClientSession() as session:
        request = asyncio.create_task(session.post(f"{server.url}/v1/shout", json={"prompt": "say"}))
        await until(lambda: [len(each.output_token_ids) for each in server.engine.requests] == [2])
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await until(lambda: server.engine.aborted)


async def test_what_a_route_raises_is_an_answer_and_the_server_serves_on(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for path, status, code, param in (
        ("/fail", 500, "internal_error", None),
        ("/nothing", 500, "internal_error", None),
        ("/refuse", 400, None, "word"),
    ):
        found, body = await send("GET", f"{server.url}{path}")
        error = body["error"]
        assert (found, error["code"], error["param"]) == (status, code, param)
        assert "secret" not in error["message"]
    assert "OSError: a secret of ours" in caplog.text and "/nothing: its handler returned None" in caplog.text
    assert (await send("POST", f"{server.url}/v1/shout", {"prompt": "a"}))[0] == 200


async def test_an_answer_that_breaks_off_is_not_taken_for_the_whole(server: Any) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(f"{server.url}/half") as response:
                await response.read()
    assert (await send("GET", f"{server.url}/prompt"))[0] == 200


@pytest.mark.parametrize("path", ["/v1/shout", "/shout"])
async def test_routes_want_the_api_key_wherever_they_are(serve: Serve, install: Install, path: str) -> None:
    server = serve(ServerOptions(api_key=("key",)), extensions=install("loud", ROUTES, **HOOKS))
    assert (await send("POST", server.url + path, {"prompt": "a"}))[0] == 401
    assert (await send("POST", server.url + path, {"prompt": "a"}, Authorization="Bearer key"))[0] == 200
    async with aiohttp.ClientSession() as session, session.head(f"{server.url}/prompt") as response:
        assert response.status == 401
    assert server.engine.requests and (await send("GET", f"{server.url}/livez"))[0] == 200


def one_route(definition: str) -> str:
    return (
        f"from aiohttp import web\nasync def handler(request): ...\ndef routes(context):\n    return [{definition}]\n"
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            one_route('web.post("/v1/chat/completions", handler)'),
            "adds POST /v1/chat/completions, which the core itself",
        ),
        (one_route('web.get("/v1/models/mine", handler)'), "adds GET /v1/models/mine, which the core itself"),
        (one_route('web.get("/v1/models/{name}", handler)'), "which the core itself serves already"),
        (one_route('web.head("/livez", handler)'), "which the core itself serves already"),
        (one_route('web.route("*", "/metrics", handler)'), "adds * /metrics, which the core itself"),
        (one_route('web.get("/x", handler), web.get("/x", handler)'), "which acme-loud 1.0 serves already"),
        (one_route('web.get("/{", handler)'), "cannot serve GET /{: ValueError"),
        (one_route('web.static("/x", "/")'), "where an aiohttp.web.RouteDef is due"),
        ("def routes(context): return 7", "cannot be made: TypeError"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_a_route_that_cannot_be_added_stops_the_start(serve: Serve, install: Install, source: str, words: str) -> None:
    with pytest.raises(PluginLoadError, match=r"acme-loud 1\.0") as caught:
        serve(extensions=install("loud", source, **HOOKS))
    assert words in str(caught.value)


def test_routes_of_two_plugins_that_are_equal_name_both(serve: Serve, install: Install) -> None:
    source = one_route('web.get("/x", handler)')
    install("one", source, server_routes={"one": "routes"})
    with pytest.raises(PluginLoadError, match=r"acme-two 1\.0.*GET /x, which acme-one 1\.0 serves already"):
        serve(extensions=install("two", source, server_routes={"two": "routes"}))


# --- metrics sinks -------------------------------------------------------------------------------------------

SINK = """
from core.metrics.base import MetricsSink

class Sink(MetricsSink):
    def __init__(self, model, options):
        self.told = TOLD
        self.fails = options.get("word") == "fail"

    def first_token(self, seconds):
        self._tell("first")

    def next_token(self, seconds):
        self._tell("next")

    def finished(self, choice):
        self._tell(choice)

    def close(self):
        self._tell("closed")

    def _tell(self, event):
        if self.fails:
            raise OSError("no host")
        self.told.append(event)

TOLD = []
"""
SINKS = {"metrics_sinks": {"sink": "Sink"}}


def told(extensions: Extensions) -> list[Any]:
    (extension,) = extensions.metrics_sinks.values()
    found: list[Any] = sys.modules[extension.target.partition(":")[0]].TOLD
    return found


async def complete(server: Any, **fields: Any) -> tuple[int, Any]:
    return await send("POST", f"{server.url}/v1/completions", {"prompt": "say", "max_tokens": 3, **fields})


async def test_a_sink_is_told_of_a_request(serve: Serve, install: Install) -> None:
    extensions = install("watch", SINK, **SINKS)
    server = serve(extensions=extensions)
    _, body = await complete(server)
    first, *others, choice = told(extensions)
    assert first == "first" and set(others) <= {"next"}, "tokens that came together are one event"
    assert (choice.request_id, choice.index, choice.reason, choice.max_tokens) == (body["id"], 0, "length", 3)
    assert (choice.prompt_tokens, choice.cached_tokens, choice.generated_tokens) == (3, 3, 3)
    assert 0 < choice.first_token_seconds <= choice.seconds and choice.seconds_per_token >= 0


async def test_a_choice_ends_once_however_it_does(serve: Serve, install: Install) -> None:
    extensions = install("watch", SINK, **SINKS)
    server = serve(extensions=extensions)

    def ended() -> list[tuple[str, int]]:
        choices = [event for event in told(extensions) if not isinstance(event, str)]
        told(extensions).clear()
        return [(choice.reason, choice.generated_tokens) for choice in choices]

    server.engine.error_after = (2, RuntimeError("broken"))
    assert (await complete(server, n=2))[0] == 500
    assert sorted(ended()) == [("error", 2), ("error", 2)]
    server.engine.reset()
    server.engine.finish = "deadline"
    assert (await complete(server, deadline_ms=1, n=2))[0] == 408
    assert ended() == [("deadline", 0), ("deadline", 0)]
    server.engine.reset()
    server.engine.error = QueueFull("too many")  # so it never began
    assert (await complete(server, n=2))[0] == 429
    assert ended() == []
    server.engine.reset()
    server.engine.stall_after = 2
    request = asyncio.create_task(complete(server))
    await until(lambda: [len(each.output_token_ids) for each in server.engine.requests] == [2])
    request.cancel()
    await until(lambda: server.engine.aborted)
    assert ended() == [("abort", 2)]


async def test_a_sink_that_raises_breaks_no_request(serve: Serve, install: Install) -> None:
    server = serve(extensions=install("watch", SINK, plugin_opt=("watch.word=fail",), **SINKS))
    answers = await asyncio.gather(*(complete(server) for _ in range(3)))
    assert [status for status, _ in answers] == [200] * 3
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as response:
        text = await response.text()
    (errors,) = re.findall(r'core:metrics_sink_errors_total{model_name="fake/model",sink="sink"} (\S+)', text)
    assert float(errors) >= 6  # the first token and the end of each, and those between
    assert 'core:request_success_total{finished_reason="length",model_name="fake/model"} 3.0' in text
