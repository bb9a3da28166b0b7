"""Replicas of `core serve` on a Ray cluster: `MODEL=org/name serve run examples.online_serving.ray_serve:app`.

Each replica runs a server of its own on a Unix socket and passes HTTP on to it, streams as they come. docs/deployment/ray.md.
"""

import asyncio
import os
import shlex
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

SHUTDOWN_TIMEOUT = 120
#: Of one connection each, so not to be passed on.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class CoreServer:
    """One `core serve`, and the way to it."""

    def __init__(self, model: str, arguments: str = "") -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="core-")
        self._socket = str(Path(self._directory.name, "http"))
        self._command = ["core", "serve", model, "--uds", self._socket, f"--shutdown-timeout={SHUTDOWN_TIMEOUT}"]
        self._command += shlex.split(arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Return when requests are taken. Raises RuntimeError where the server ends instead."""
        self._process = await asyncio.create_subprocess_exec(*self._command)
        self._session = aiohttp.ClientSession(
            "http://core", connector=aiohttp.UnixConnector(self._socket, limit=0), timeout=aiohttp.ClientTimeout()
        )
        while not await self.is_ready():
            if self._process.returncode is not None:
                raise RuntimeError(f"core serve ended with status {self._process.returncode}; its log says why")
            await asyncio.sleep(0.5)

    async def is_ready(self) -> bool:
        """Whether requests are taken."""
        assert self._session is not None
        try:
            async with self._session.get("/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def pass_on(self, request: Request) -> Response:
        """The server's answer, each piece of it when it comes."""
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        answer = await self._session.request(request.method, path, data=await request.body(), headers=headers)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        return StreamingResponse(_pieces(answer), status_code=answer.status, headers=kept)

    async def stop(self) -> None:
        """Drain."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        self._directory.cleanup()


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for piece in answer.content.iter_any():
            yield piece


@serve.deployment(
    ray_actor_options={"num_cpus": 4},
    max_ongoing_requests=64,
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16},
    health_check_period_s=10,
    graceful_shutdown_timeout_s=SHUTDOWN_TIMEOUT + 30,
)
class Core:
    """A replica."""

    def __init__(self) -> None:
        self._server = CoreServer(os.environ["MODEL"], os.environ.get("CORE_ARGUMENTS", ""))
        self._started = asyncio.create_task(self._server.start())

    async def __call__(self, request: Request) -> Response:
        await self._started
        return await self._server.pass_on(request)

    async def check_health(self) -> None:
        """Ray replaces a replica that raises."""
        if self._started.done():
            self._started.result()

    async def __del__(self) -> None:
        await self._server.stop()


app = Core.bind()
