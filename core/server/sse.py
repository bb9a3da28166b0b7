"""Server-sent events (WHATWG HTML, section 9.2): an answer as a stream of chunks."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from core.server.errors import describe

_encoder = msgspec.json.Encoder()
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}
_DONE = b"data: [DONE]\n\n"


class ChunkWriter:
    """Writes chunks of one answer: everything that does not change between them is encoded once."""

    def __init__(self, head: dict[str, object], *, usage_key: bool) -> None:
        self._head = b"data: " + _encoder.encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if usage_key else b"]}\n\n"
        self._response = web.StreamResponse(headers=_HEADERS)

    async def open(self, request: web.Request) -> None:
        """Send the headers; errors are events from here on."""
        await self._response.prepare(request)

    def chunk(self, choice: Any, usage: Any | None = None) -> bytes:
        """One choice's piece as an event, with `usage` so far where the client asked for it every time."""
        tail = self._tail if usage is None else b'],"usage":' + _encoder.encode(usage) + b"}\n\n"
        return self._head + _encoder.encode(choice) + tail

    def usage(self, usage: Any) -> bytes:
        """The last chunk, which has counts and no choices."""
        return self._head + b'],"usage":' + _encoder.encode(usage) + b"}\n\n"

    async def write(self, events: list[bytes]) -> None:
        """Send events, if there are any, in one write; waits while the client does not read."""
        if events:
            await self._response.write(b"".join(events))

    async def close(self) -> web.StreamResponse:
        """End the stream."""
        await self._response.write(_DONE)
        await self._response.write_eof()
        return self._response

    async def fail(self, error: Exception, request_id: str) -> web.StreamResponse:
        """End the stream with an error: the status line has long gone out."""
        _, body = describe(error, request_id)
        await self._response.write(b"data: " + _encoder.encode(body) + b"\n\n")
        return await self.close()
