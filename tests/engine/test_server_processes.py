"""The supervisor, real engine and frontend processes, and a client in this one. The engines are fake."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import psutil
import pytest
from fake_engine import BAD_LUCK, CONFIG, POISON, FakeEngine, FrontendOptions, collect, make_request, tokens_of

from core.engine import supervisor
from core.engine.client import RemoteEngineClient
from core.engine.messages import EngineStatus, Planned
from core.engine.supervisor import Launch, Supervisor
from core.errors import CoreError, EngineDead, InvalidRequest, QueueFull
from core.platform import ChosenPlatform


class Watcher:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.statuses: list[EngineStatus] = []
        self.plans: list[Planned] = []
        self.is_serving = asyncio.Event()

    def status(self, status: EngineStatus) -> None:
        self.statuses.append(status)

    def planned(self, planned: Planned) -> None:
        self.plans.append(planned)

    def serving(self) -> None:
        self.is_serving.set()


class Server:
    """A supervisor running in this process's event loop, and what a test needs to reach it."""

    def __init__(self, launch: Launch, base: Path, engine_log: Path) -> None:
        self.watcher = Watcher()
        self._base = base
        self._engine_log = engine_log
        self.running = asyncio.create_task(Supervisor(launch, self.watcher).run())

    @property
    def directory(self) -> Path:
        (directory,) = self._base.glob("core-*")
        return directory

    async def connect(self) -> RemoteEngineClient:
        await until(lambda: bool(list(self._base.glob("core-*/control.ipc"))))
        return RemoteEngineClient(f"ipc://{self.directory}/control.ipc", CONFIG)

    def engine_pids(self) -> list[int]:
        return [int(pid) for pid in self._engine_log.read_text().split()] if self._engine_log.exists() else []

    def kill_engine(self) -> None:
        os.kill(self.engine_pids()[-1], signal.SIGKILL)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; pytest's own time limit says when it has not."""
    while not condition():
        await asyncio.sleep(0.01)


async def until_running(client: RemoteEngineClient, count: int) -> None:
    while (await client.stats()).running != count:
        await asyncio.sleep(0.01)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where private directories are made. (After `tmp_path`, which pytest would make in it otherwise.)"""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)
        assert not list(Path(directory).glob("core-*"))


Serve = Callable[..., "asynccontextmanager[Server]"]


@pytest.fixture
def serve(base: Path, tmp_path: Path) -> Callable[..., object]:
    """`async with serve(step_s="0.01") as server`: a server without frontends but the test's own clients."""

    @asynccontextmanager
    async def start(
        frontends: int = 0, frontend: FrontendOptions | None = None, timeout: float = 30.0, **behaviour: str
    ) -> AsyncIterator[Server]:
        log = tmp_path / "engines"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            launch = Launch(
                config=CONFIG,
                chosen=ChosenPlatform("fake", {"log": str(log), **behaviour}),
                frontend_options=frontend or FrontendOptions(),
                listen_fd=listener.fileno(),
                api_server_count=frontends,
                shutdown_timeout_s=timeout,
                engine_factory=f"{FakeEngine.__module__}:FakeEngine.build",
                frontend_entry=f"{FakeEngine.__module__}:run_frontend",
            )
            server = Server(launch, base, log)
            try:
                yield server
            finally:
                if not server.running.done():
                    os.kill(os.getpid(), signal.SIGTERM)
                with suppress(CoreError):
                    await server.running
        assert not psutil.Process().children(recursive=True)

    return start


# --- restarts ------------------------------------------------------------------------------------------------


async def test_streams_survive_the_death_of_their_engine(serve: Serve) -> None:
    async with serve() as server:
        client = await server.connect()
        requests = [make_request(f"r{index}", [index + 1, 7], 200) for index in range(16)]
        streams = [asyncio.create_task(collect(client, request)) for request in requests]
        for restarts in (1, 2):
            await until_running(client, 16)
            await asyncio.sleep(0.05)
            server.kill_engine()
            await until(lambda restarts=restarts: client.status.restarts == restarts)
        assert await asyncio.gather(*streams) == [tokens_of(request) for request in requests]
        states = [status.state for status in server.watcher.statuses]
        assert states.index("loading") < states.index("ready") < states.index("restarting")
        assert "SIGKILL" in next(s.message for s in server.watcher.statuses if s.state == "restarting")
        assert len(server.engine_pids()) == 3
        await client.close()


async def test_an_engine_that_raises_is_replaced_and_says_what_it_raised(serve: Serve) -> None:
    async with serve() as server:
        client = await server.connect()
        request = make_request("r", [BAD_LUCK], 20)
        assert await collect(client, request) == tokens_of(request)
        message = next(s.message for s in server.watcher.statuses if s.state == "restarting")
        assert message == "the engine failed: RuntimeError: the step failed"
        await client.close()


async def test_a_request_that_kills_engines_is_given_up_and_others_are_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    async with serve() as server:
        client = await server.connect()
        last = [delta async for delta in client.generate(make_request("poison", [POISON], 10))][-1]
        assert last.finish_reason == "error" and "3 engines" in (last.error or "")
        request = make_request("healthy", [5], 10)
        assert await collect(client, request) == tokens_of(request)
        assert client.status.restarts == 3
        await client.close()


async def test_an_engine_that_no_longer_starts_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    async with serve(fail="segfault", fail_from="2") as server:
        client = await server.connect()
        stream = asyncio.create_task(collect(client, make_request("r", [1], 100_000)))
        await until_running(client, 1)
        server.kill_engine()
        with pytest.raises(EngineDead, match="SIGSEGV"):
            await stream
        with pytest.raises(EngineDead, match="SIGSEGV"):
            await server.running
        for call in (client.stats(), client.wait_ready(), collect(client, make_request("later", [1], 1))):
            with pytest.raises(EngineDead):
                await call
        assert client.status.state == "failed"
        assert len(server.engine_pids()) == 1 + supervisor.GIVE_UP_AFTER
        await client.close()


async def test_what_was_accepted_once_is_not_refused_by_the_next_engine(serve: Serve) -> None:
    """The new engine's queue is full when it is given everything at once; nobody notices but the clock."""
    async with serve(max_requests="4") as server:
        client = await server.connect()
        requests = [make_request(f"r{index}", [index + 1], 100) for index in range(4)]
        streams = [asyncio.create_task(collect(client, request)) for request in requests]
        await until_running(client, 4)
        intruder = await server.connect()
        server.kill_engine()
        # Taken by the next engine first, or refused: either way the four go on.
        with suppress(QueueFull):
            await collect(intruder, make_request("intruder", [9], 50))
        assert await asyncio.gather(*streams) == [tokens_of(request) for request in requests]
        await intruder.close()
        await client.close()


# --- start-up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fail", "message"), [("unsupported", "float16 is not supported"), ("segfault", "SIGSEGV")])
async def test_an_engine_that_never_starts_ends_the_server_with_its_error(
    serve: Serve, fail: str, message: str
) -> None:
    async with serve(fail=fail) as server:
        with pytest.raises(EngineDead, match=message):
            await server.running
        assert len(server.engine_pids()) == 1


async def test_a_frontend_that_cannot_start_ends_the_server_with_its_error(serve: Serve, base: Path) -> None:
    async with serve(frontends=1, frontend=FrontendOptions(fail=True)) as server:
        with pytest.raises(CoreError, match="--fake: this frontend cannot start"):
            await server.running


async def test_the_plan_and_the_progress_arrive_before_ready(serve: Serve) -> None:
    async with serve() as server:
        client = await server.connect()
        await client.wait_ready()
        assert client.config.scheduler.max_model_len == 1234  # as the platform changed it
        assert server.watcher.plans[0].overrides[0].reason == "test"
        assert client.status.memory_plan["kv_cache"] == 640
        assert client.status.memory_plan["total"] == 1870
        loading = [status.progress for status in server.watcher.statuses if status.stage == "loading"]
        assert loading == sorted(loading) and loading[-1] == 1.0 and len(loading) > 10
        assert client.status.platform == "fake"
        await client.close()


async def test_only_this_user_can_reach_the_sockets(serve: Serve) -> None:
    async with serve() as server:
        client = await server.connect()
        await client.wait_ready()
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        sockets = list(server.directory.iterdir())
        assert {path.name for path in sockets} == {"control.ipc", "engine-1.ipc"}
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in sockets)
        await client.close()


# --- requests ------------------------------------------------------------------------------------------------


async def test_closing_a_stream_aborts_its_request(serve: Serve) -> None:
    async with serve() as server:
        client = await server.connect()
        stream = client.generate(make_request("r", [1], 100_000))
        await anext(stream)
        await until_running(client, 1)
        await stream.aclose()
        await until_running(client, 0)
        await client.close()


async def test_abort_ends_the_stream(serve: Serve) -> None:
    async with serve() as server:
        client = await server.connect()
        stream = client.generate(make_request("r", [1], 100_000))
        await anext(stream)
        await client.abort("r")
        await client.abort("never heard of")
        assert [delta async for delta in stream][-1].finish_reason == "abort"
        await until_running(client, 0)
        await client.close()


async def test_refusals_arrive_as_the_errors_they_were(serve: Serve) -> None:
    async with serve(max_requests="1") as server:
        client = await server.connect()
        with pytest.raises(InvalidRequest, match="is empty") as invalid:
            await collect(client, make_request("empty", [], 1))
        assert (invalid.value.param, invalid.value.code) == ("prompt", "empty")
        stream = client.generate(make_request("r", [1], 100_000))
        await anext(stream)
        with pytest.raises(InvalidRequest, match="already running"):
            await anext(client.generate(make_request("r", [1], 1)))
        with pytest.raises(QueueFull) as full:
            await collect(client, make_request("second", [1], 1))
        assert full.value.retry_after_s == 0.05
        await stream.aclose()
        await client.close()


async def test_a_frontend_that_dies_is_replaced_and_its_requests_are_aborted(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "frontends"
    options = FrontendOptions(log=str(log), requests=3, tokens=1_000_000)
    async with serve(frontends=1, frontend=options, timeout=0.0) as server:
        await server.watcher.is_serving.wait()
        client = await server.connect()
        await until_running(client, 3)
        os.kill(int(log.read_text()), signal.SIGKILL)
        await until(lambda: len(log.read_text().split()) == 2)
        await until_running(client, 3)  # the new one's: the old one's would make it six
        await client.close()


# --- the end -------------------------------------------------------------------------------------------------


async def test_sigterm_lets_running_requests_finish(serve: Serve, tmp_path: Path) -> None:
    results = tmp_path / "results"
    options = FrontendOptions(requests=4, tokens=150, results=str(results))
    async with serve(frontends=1, frontend=options) as server:
        await server.watcher.is_serving.wait()
        client = await server.connect()
        await until_running(client, 4)
        os.kill(os.getpid(), signal.SIGTERM)
        await server.running
        expected = [tokens_of(make_request("", [index + 1], 150)) for index in range(4)]
        assert msgspec.json.decode(results.read_bytes()) == expected
        assert server.watcher.statuses[-1].state == "draining"
        await client.close()


@pytest.mark.parametrize("timeout", [0.0, 600.0])
async def test_draining_ends_at_the_timeout_or_at_a_second_signal(serve: Serve, timeout: float) -> None:
    options = FrontendOptions(requests=1, tokens=1_000_000)
    async with serve(frontends=1, frontend=options, timeout=timeout) as server:
        await server.watcher.is_serving.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        if timeout:
            await until(lambda: server.watcher.statuses[-1].state == "draining")
            os.kill(os.getpid(), signal.SIGINT)
        await server.running


async def test_a_signal_while_loading_ends_at_once(serve: Serve) -> None:
    async with serve(frontends=1, fail="hang") as server:
        await until(lambda: bool(server.watcher.statuses) and server.watcher.statuses[-1].stage == "loading")
        os.kill(os.getpid(), signal.SIGINT)
        await server.running


async def test_an_idle_engine_costs_no_cpu(serve: Serve) -> None:
    async with serve() as server:
        client = await server.connect()
        request = make_request("r", [1], 5)
        assert await collect(client, request) == tokens_of(request)
        engine = psutil.Process(server.engine_pids()[-1])
        before = engine.cpu_times()
        await asyncio.sleep(2.0)
        after = engine.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.05
        await client.close()
