"""The client against a supervisor and engines that the test plays itself, socket by socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from fake_engine import CONFIG, make_request

from core.engine.client import MAX_DEATHS, MAX_SLOW_DEATHS, RemoteEngineClient
from core.engine.messages import (
    Abort,
    Deltas,
    EngineStatus,
    GetStats,
    Hello,
    Reset,
    ResetPrefixCache,
    StateChange,
    Stats,
    Submit,
    ToEngine,
    encode,
    rejection,
)
from core.errors import EngineDead, QueueFull
from core.types import EngineStats, RequestDelta, TokenLogprobs


class Stage:
    """The other ends of a client's sockets."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._context = zmq.asyncio.Context()
        self._routers: list[zmq.asyncio.Socket] = []
        self._control = self.bind("control")
        self.client = RemoteEngineClient(self.endpoint("control"), CONFIG)

    def endpoint(self, name: str) -> str:
        return f"ipc://{self._directory / name}"

    def bind(self, name: str) -> zmq.asyncio.Socket:
        router = self._context.socket(zmq.ROUTER)
        router.bind(self.endpoint(name))
        self._routers.append(router)
        return router

    async def greet(self) -> None:
        self._peer, body = await self._control.recv_multipart()
        msgspec.msgpack.decode(body, type=Hello)

    async def tell(self, state: Any, incarnation: int = 0, endpoint: str | None = None, message: str = "") -> None:
        change = StateChange(
            status=EngineStatus(state=state, message=message), incarnation=incarnation, endpoint=endpoint, config=CONFIG
        )
        await self._control.send_multipart((self._peer, encode(change)))

    async def engine(self, incarnation: int) -> PlayedEngine:
        name = f"engine-{incarnation}"
        played = PlayedEngine(self.bind(name))
        await self.tell("ready", incarnation, self.endpoint(name))
        return played

    async def close(self) -> None:
        await self.client.close()
        self._context.destroy(linger=0)


class PlayedEngine:
    def __init__(self, router: zmq.asyncio.Socket) -> None:
        self._router = router
        self._peer = b""

    async def hear(self) -> ToEngine:
        self._peer, body = await self._router.recv_multipart()
        return msgspec.msgpack.decode(body, type=ToEngine)

    async def say(self, message: Any) -> None:
        await self._router.send_multipart((self._peer, encode(message)))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        stage = Stage(directory)
        await stage.greet()
        yield stage
        await stage.close()


def next_of(stream: AsyncIterator[RequestDelta]) -> asyncio.Task[RequestDelta]:
    return asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]


async def test_a_new_engine_gets_the_request_with_what_was_emitted(stage: Stage) -> None:
    request = make_request("r", [1, 2], 10)
    stream = stage.client.generate(request)
    delta = next_of(stream)
    first = await stage.engine(1)
    assert await first.hear() == Submit(request)
    await first.say(Deltas([RequestDelta("r", [5, 6])]))
    assert (await delta).token_ids == [5, 6]
    await stage.tell("restarting", 1)
    second = await stage.engine(2)
    assert await second.hear() == Submit(msgspec.structs.replace(request, output_token_ids=[5, 6]))
    await first.say(Deltas([RequestDelta("r", [99])]))  # too late: nobody listens to the dead
    await second.say(Deltas([RequestDelta("r", [7], "stop", stop_reason=7)]))
    assert [(d.token_ids, d.finish_reason) async for d in stream] == [([7], "stop")]


async def test_what_a_reader_has_left_waiting_is_one_delta(stage: Stage) -> None:
    stream = stage.client.generate(make_request("r", [1], 10))
    delta = next_of(stream)
    engine = await stage.engine(1)
    await engine.hear()
    await engine.say(Deltas([RequestDelta("r", [5], logprobs=[TokenLogprobs(-0.5, 1)], num_cached_tokens=1)]))
    assert (await delta).token_ids == [5]
    stats = asyncio.ensure_future(stage.client.stats())
    prompt = [TokenLogprobs(-9.0, 1)]
    six, seven = TokenLogprobs(-6.0, 1), TokenLogprobs(-7.0, 1)
    await engine.say(Deltas([RequestDelta("r", [6], logprobs=[six], prompt_logprobs=prompt)]))
    await engine.say(Deltas([RequestDelta("r", [7], logprobs=[seven])]))
    await engine.say(Deltas([RequestDelta("r", [], "abort")]))
    await engine.say(Stats(EngineStats()))
    await stats  # and so the deltas before it are there
    whole = RequestDelta("r", [6, 7], "abort", logprobs=[six, seven], prompt_logprobs=prompt)
    assert [delta async for delta in stream] == [whole]


async def test_a_change_of_engine_is_noticed_without_its_announcement(stage: Stage) -> None:
    stream = stage.client.generate(make_request("r", [1], 10))
    delta = next_of(stream)
    await (await stage.engine(1)).hear()
    second = await stage.engine(2)
    await second.hear()
    await second.say(Deltas([RequestDelta("r", [7], "length")]))
    assert (await delta).token_ids == [7]


async def test_a_request_that_lacked_only_its_last_word_ends(stage: Stage) -> None:
    stream = stage.client.generate(make_request("r", [1], 2))
    delta = next_of(stream)
    engine = await stage.engine(1)
    await engine.hear()
    await engine.say(Deltas([RequestDelta("r", [5, 6])]))
    await delta
    await stage.tell("restarting", 1)
    await stage.engine(2)
    assert [(d.token_ids, d.finish_reason) async for d in stream] == [([], "length")]


async def test_a_request_is_given_to_so_many_engines_and_no_more(stage: Stage) -> None:
    delta = next_of(stage.client.generate(make_request("r", [1], 2)))
    for incarnation in range(1, MAX_DEATHS + 1):
        assert isinstance(await (await stage.engine(incarnation)).hear(), Submit)
        await stage.tell("restarting", incarnation)
    assert (await delta).finish_reason == "error"
    # Nothing of it is left that a fourth engine would be given.
    engine = await stage.engine(MAX_DEATHS + 1)
    stats = asyncio.ensure_future(stage.client.stats())
    assert await engine.hear() == GetStats()
    await engine.say(Stats(EngineStats(steps=3)))
    assert (await stats).steps == 3


async def test_the_innocent_outlive_the_request_that_kills_engines(stage: Stage) -> None:
    """After two engines that gave them nothing, each is given to the next one alone: it dies of one of them."""
    streams = {name: next_of(stage.client.generate(make_request(name, [1], 9))) for name in ("good", "bad", "late")}
    for incarnation in (1, 2):
        engine = await stage.engine(incarnation)
        assert [await submitted(engine) for _ in streams] == list(streams)
        await stage.tell("restarting", incarnation)
    engine = await stage.engine(3)
    assert await submitted(engine) == "good"
    new = next_of(stage.client.generate(make_request("new", [1], 9)))
    await engine.say(Deltas([RequestDelta("good", [5])]))
    assert (await streams["good"]).token_ids == [5]
    assert await submitted(engine) == "bad"
    await stage.tell("restarting", 3)
    assert (await streams["bad"]).finish_reason == "error"
    engine = await stage.engine(4)
    assert await submitted(engine) == "late"
    await engine.say(Deltas([RequestDelta("late", [7], "length")]))
    assert (await streams["late"]).token_ids == [7]
    assert [await submitted(engine) for _ in range(2)] == ["good", "new"]
    await engine.say(Deltas([RequestDelta("new", [8], "length")]))
    assert (await new).token_ids == [8]


async def test_a_suspect_that_leaves_makes_room_for_the_next(stage: Stage) -> None:
    streams = {name: next_of(stage.client.generate(make_request(name, [1], 9))) for name in ("first", "second")}
    for incarnation in (1, 2):
        engine = await stage.engine(incarnation)
        assert [await submitted(engine) for _ in streams] == list(streams)
        await stage.tell("restarting", incarnation)
    engine = await stage.engine(3)
    assert await submitted(engine) == "first"
    streams["first"].cancel()
    assert await engine.hear() == Abort("first")
    assert await submitted(engine) == "second"


async def test_what_kills_slowly_ends_too(stage: Stage) -> None:
    """It gets a token from every engine, and every engine dies."""
    stream = stage.client.generate(make_request("slow", [1], 99))
    delta = next_of(stream)
    for incarnation in range(1, MAX_SLOW_DEATHS + 1):
        engine = await stage.engine(incarnation)
        assert await submitted(engine) == "slow"
        await engine.say(Deltas([RequestDelta("slow", [incarnation])]))
        assert (await delta).token_ids == [incarnation]
        delta = next_of(stream)
        await stage.tell("restarting", incarnation)
    assert (await delta).finish_reason == "error"


async def submitted(engine: PlayedEngine) -> str:
    """The name of the request that comes next."""
    message = await engine.hear()
    assert isinstance(message, Submit)
    return message.request.request_id


async def test_a_full_queue_is_waited_for_only_by_what_was_accepted_before(stage: Stage) -> None:
    delta = next_of(stage.client.generate(make_request("old", [1], 2)))
    await (await stage.engine(1)).hear()
    await stage.tell("restarting", 1)
    engine = await stage.engine(2)
    again = await engine.hear()
    new = next_of(stage.client.generate(make_request("new", [1], 2)))
    await engine.hear()
    for request_id in ("old", "new"):
        await engine.say(rejection(request_id, QueueFull("full", retry_after_s=0.01)))
    with pytest.raises(QueueFull):
        await new
    assert await engine.hear() == again
    await engine.say(Deltas([RequestDelta("old", [7], "length")]))
    assert (await delta).token_ids == [7]


async def test_a_closed_stream_is_aborted_and_not_submitted_again(stage: Stage) -> None:
    stream = stage.client.generate(make_request("r", [1], 9))
    delta = next_of(stream)
    engine = await stage.engine(1)
    await engine.hear()
    await engine.say(Deltas([RequestDelta("r", [5])]))
    await delta
    await stream.aclose()
    assert await engine.hear() == Abort("r")
    await stage.tell("restarting", 1)
    second = await stage.engine(2)
    stats = asyncio.ensure_future(stage.client.stats())
    assert await second.hear() == GetStats()
    await second.say(Stats(EngineStats()))
    await stats


async def test_a_cancelled_consumer_aborts_its_request(stage: Stage) -> None:
    delta = next_of(stage.client.generate(make_request("r", [1], 9)))
    engine = await stage.engine(1)
    await engine.hear()
    delta.cancel()
    assert await engine.hear() == Abort("r")


async def test_stats_asked_of_a_dying_engine_come_from_the_next(stage: Stage) -> None:
    first = asyncio.ensure_future(stage.client.stats())
    engine = await stage.engine(1)
    assert await engine.hear() == GetStats()
    await stage.tell("restarting", 1)
    engine = await stage.engine(2)
    assert await engine.hear() == GetStats()
    await engine.say(Stats(EngineStats(running=4)))
    assert (await first).running == 4


async def test_failure_for_good_reaches_everyone(stage: Stage) -> None:
    waiting = [
        asyncio.ensure_future(stage.client.wait_ready()),
        asyncio.ensure_future(stage.client.stats()),
        next_of(stage.client.generate(make_request("r", [1], 9))),
    ]
    await asyncio.sleep(0)
    await stage.tell("failed", message="it is over")
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, EngineDead) and str(outcome) == "it is over"


async def test_a_draining_server_keeps_its_engine(stage: Stage) -> None:
    delta = next_of(stage.client.generate(make_request("r", [1], 9)))
    engine = await stage.engine(1)
    await engine.hear()
    await stage.tell("draining", 1, stage.endpoint("engine-1"))
    await engine.say(Deltas([RequestDelta("r", [5], "length")]))
    assert (await delta).token_ids == [5]
    assert stage.client.status.state == "draining"


async def test_resets_are_answered_in_their_order_and_end_with_their_engine(stage: Stage) -> None:
    engine = await stage.engine(1)
    resets = [asyncio.ensure_future(stage.client.reset_prefix_cache()) for _ in range(3)]
    for _ in resets:
        assert await engine.hear() == ResetPrefixCache()
    resets[0].cancel()
    for done in (True, False):
        await engine.say(Reset(done))
    assert await resets[1] is False
    await stage.tell("restarting", 1)
    with pytest.raises(EngineDead, match="replaced"):
        await resets[2]
