"""Several frontends of one server, as their clients see them: as one."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest
from aiohttp import web
from fake_server import TEMPLATE, FakeEngine, make_config, make_tokenizer

from core.server.app import app_runner, create_app
from core.server.frontends import Frontends
from core.server.limits import shared
from core.server.options import ServerOptions

RESPONSES = "/v1/responses"
OPTIONS = ServerOptions(api_key=("one", "two"), admin_key=("root",), max_concurrency_per_key=1)


class Frontend(NamedTuple):
    engine: FakeEngine
    frontends: Frontends
    runner: web.AppRunner
    url: str

    async def ask(self, method: str, path: str, body: Any = None, key: str = "one") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.request(method, self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[list[Frontend]]:
    """Two frontends of one server."""
    async with AsyncExitStack() as stack:
        yield [await _start(tmp_path, stack) for _ in range(2)]


async def _start(directory: Path, stack: AsyncExitStack) -> Frontend:
    tokenizer, frontends = make_tokenizer(TEMPLATE), Frontends(directory)
    engine = FakeEngine(make_config(), tokenizer)
    runner = app_runner(create_app(engine, tokenizer, OPTIONS, frontends), shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await frontends.listen(runner)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = next(address[1] for address in runner.addresses if isinstance(address, tuple))
    return Frontend(engine, frontends, runner, f"http://127.0.0.1:{port}")


async def test_a_response_is_found_by_any_frontend_and_no_other_key(pair: list[Frontend]) -> None:
    here, there = pair
    status, made = await here.ask("POST", RESPONSES, {"input": "say"})
    assert status == 200
    for frontend in pair:
        assert await frontend.ask("GET", f"{RESPONSES}/{made['id']}") == (200, made)
        status, items = await frontend.ask("GET", f"{RESPONSES}/{made['id']}/input_items?limit=1")
        assert status == 200 and items["data"][0]["role"] == "user"
        for key in ("two", "root"):
            status, refused = await frontend.ask("GET", f"{RESPONSES}/{made['id']}", key=key)
            assert status == 404 and refused["error"]["code"] == "response_not_found"
            assert (await frontend.ask("DELETE", f"{RESPONSES}/{made['id']}", key=key))[0] == 404
            body = {"input": "more", "previous_response_id": made["id"]}
            assert (await frontend.ask("POST", RESPONSES, body, key=key))[0] == 404
            assert (await frontend.ask("POST", f"{RESPONSES}/input_tokens", body, key=key))[0] == 404
    assert (await there.ask("GET", f"{RESPONSES}/{made['id']}", key="wrong"))[0] == 401
    assert (await there.ask("DELETE", f"{RESPONSES}/{made['id']}"))[0] == 200
    assert (await here.ask("GET", f"{RESPONSES}/{made['id']}"))[0] == 404


async def test_a_conversation_goes_on_at_any_frontend(pair: list[Frontend]) -> None:
    here, there = pair
    _, made = await here.ask("POST", RESPONSES, {"input": "say"})
    status, more = await there.ask("POST", RESPONSES, {"input": "more", "previous_response_id": made["id"]})
    assert status == 200 and more["previous_response_id"] == made["id"]
    assert not there.engine.requests, "the frontend that has the beginning answers"
    prompt = here.engine._tokenizer.decode(here.engine.requests[-1].prompt_token_ids)
    assert "say" in prompt and "more" in prompt
    assert (await there.ask("GET", f"{RESPONSES}/{more['id']}"))[0] == 200


async def test_a_stream_is_passed_on_as_it_comes_and_ends_where_its_reader_leaves(pair: list[Frontend]) -> None:
    here, there = pair
    _, made = await here.ask("POST", RESPONSES, {"input": "say"})
    here.engine.aborted.clear()
    here.engine.stall_after = 3
    body = {"input": "more", "previous_response_id": made["id"], "stream": True}
    headers = {"Authorization": "Bearer one"}
    async with aiohttp.request("POST", there.url + RESPONSES, json=body, headers=headers) as answer:
        assert answer.status == 200 and answer.content_type == "text/event-stream"
        seen = b""
        while b"output_text.delta" not in seen:  # it came although nothing more does
            seen += await answer.content.readany()
    here.engine.stall_after = None
    async with asyncio.timeout(10):
        while not here.engine.aborted:
            await asyncio.sleep(0.01)
    assert here.engine.aborted == [here.engine.requests[-1].request_id]


async def test_what_runs_in_the_background_is_cancelled_from_anywhere(pair: list[Frontend]) -> None:
    here, there = pair
    here.engine.stall_after = 1
    _, begun = await here.ask("POST", RESPONSES, {"input": "say", "background": True})
    status, ended = await there.ask("POST", f"{RESPONSES}/{begun['id']}/cancel")
    assert status == 200 and ended["status"] == "cancelled"


async def test_a_frontend_that_has_gone_takes_its_responses_with_it(pair: list[Frontend]) -> None:
    here, there = pair
    _, made = await here.ask("POST", RESPONSES, {"input": "say"})
    await here.runner.cleanup()
    status, refused = await there.ask("GET", f"{RESPONSES}/{made['id']}")
    assert status in (404, 502) and refused["error"]["type"]
    for strange in ("resp_" + "0" * 48, "resp_../../etc/passwd", "zzz"):
        assert (await there.ask("GET", f"{RESPONSES}/{strange.replace('/', '%2F')}"))[0] == 404


async def test_only_this_user_reaches_the_socket_between_them(pair: list[Frontend]) -> None:
    socket = pair[0].frontends.socket
    assert socket is not None and stat.S_IMODE(socket.stat().st_mode) == 0o600


@pytest.mark.parametrize(("frontends", "concurrency", "rate"), [(1, 5, 60), (2, 3, 30), (4, 2, 15), (8, 1, 8)])
def test_limits_are_divided_between_frontends(frontends: int, concurrency: int, rate: int) -> None:
    options = ServerOptions(max_concurrency_per_key=5, rate_limit_per_key=60)
    divided = shared(options, frontends)
    assert (divided.max_concurrency_per_key, divided.rate_limit_per_key) == (concurrency, rate)
    kept = msgspec.structs.replace(divided, max_concurrency_per_key=5, rate_limit_per_key=60)
    assert kept == options and divided.max_queued_tokens == 0
