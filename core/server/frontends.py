"""The other frontends of this server: each answers for the responses that it made, whichever a request comes to.

A response's id says which frontend has it. Another passes such requests on, as they came, over a Unix socket in the
directory that only this user may enter (`core.engine.sockets`), and passes the answer back as it comes.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import aiohttp
from aiohttp import hdrs, web

from core.server.errors import REQUEST_ID

_ID = re.compile(r"resp_(?P<frontend>[0-9a-f]{8})[0-9a-f]{40}")
#: Of a request, what is passed on; of an answer, what our own would not have.
_ASKED = (hdrs.AUTHORIZATION, hdrs.CONTENT_TYPE, hdrs.ACCEPT)
_ANSWERED = (hdrs.CONTENT_TYPE, hdrs.RETRY_AFTER, hdrs.CACHE_CONTROL, "X-Accel-Buffering", "x-core-ignored-fields")


class Frontends:
    """This frontend among the others. `directory` is where their sockets are; None: there are no others."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._name = secrets.token_hex(4)

    @property
    def socket(self) -> Path | None:
        """Where the others reach this one."""
        return None if self._directory is None else self._socket_of(self._name)

    def new_response_id(self) -> str:
        """An id that nobody can guess, for a response that is kept here."""
        return f"resp_{self._name}{secrets.token_hex(20)}"

    def holder(self, request: web.Request, response_id: str | None) -> Path | None:
        """The socket of the frontend that has a response, if another is there that has it."""
        found = _ID.fullmatch(response_id or "")
        if self._directory is None or found is None or found["frontend"] == self._name or self.passed_on(request):
            return None
        socket = self._socket_of(found["frontend"])
        return socket if socket.exists() else None

    def passed_on(self, request: web.Request) -> bool:
        """Whether another frontend, which has counted it, has passed the request on."""
        if self.socket is None or request.transport is None:
            return False
        address = request.transport.get_extra_info("sockname")
        return isinstance(address, str) and address == str(self.socket)

    async def pass_on(self, request: web.Request, socket: Path) -> web.StreamResponse:
        """The answer of another frontend. Whoever leaves here leaves there too. Raises ConnectionError where it breaks
        off; one that has just ended is nobody's fault, and a 502."""
        headers: dict[str, str] = {str(name): request.headers[name] for name in _ASKED if name in request.headers}
        headers["X-Request-Id"] = request[REQUEST_ID]
        connector, forever = aiohttp.UnixConnector(str(socket)), aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=forever, auto_decompress=False) as session:
            url, body = f"http://frontend{request.path_qs}", await request.read()
            try:
                answer = await session.request(request.method, url, headers=headers, data=body)
            except aiohttp.ClientConnectionError as error:
                raise web.HTTPBadGateway(text=f"the frontend that has this response has gone: {error}") from error
            async with answer:
                return await _passed_back(request, answer)

    def _socket_of(self, name: str) -> Path:
        assert self._directory is not None
        return self._directory / f"frontend-{name}.sock"

    async def listen(self, runner: web.AppRunner) -> None:
        """Let the others reach this one."""
        if self.socket is not None:
            await web.UnixSite(runner, str(self.socket)).start()
            os.chmod(self.socket, 0o600)


async def _passed_back(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    kept: dict[str, str] = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
    response = web.StreamResponse(status=answer.status, headers=kept)
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except aiohttp.ClientError as error:
        if request.transport is not None:
            request.transport.abort()  # what is out must not be taken for the whole
        raise ConnectionResetError("the frontend that has this response broke off") from error
    await response.write_eof()
    return response


FRONTENDS: web.AppKey[Frontends] = web.AppKey("frontends", Frontends)
