"""Server-sent events (WHATWG HTML, section 9.2): an answer as a stream of chunks."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http import StreamWriter

from core.server.errors import describe, message_error
from core.server.state import STATE

_encoder = msgspec.json.Encoder()
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}
_CHOICES = b',"choices":['
_DONE = b"data: [DONE]\n\n"


class EventStream(abc.ABC):
    """One answer as events."""

    def __init__(self) -> None:
        self._response = web.StreamResponse(headers=_HEADERS)

    async def open(self, request: web.Request) -> None:
        """Send the headers; errors are events from here on."""
        self._patience = request.app[STATE].options.send_timeout
        self._protocol = request.protocol
        await self._response.prepare(request)
        assert isinstance(request.writer, StreamWriter), "what prepare wrote the headers to"
        self._writer = request.writer

    async def write(self, events: list[bytes]) -> None:
        """Send events, if there are any, in one write; waits while the client does not read.

        Raises ConnectionError where it is gone, or takes nothing for `--send-timeout`: its request ends then.
        """
        if not events:
            return
        await self._writer.write(b"".join(events), drain=False)
        if self._protocol.writing_paused:  # a timer for each write would cost as much as the rest of it
            await self._patiently(self._writer.drain())

    async def close(self) -> web.StreamResponse:
        """End the stream."""
        await self._patiently(self._response.write_eof())
        return self._response

    async def _patiently(self, sent: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await sent
        except TimeoutError:
            if self._protocol.transport is not None:
                self._protocol.transport.abort()
            raise ConnectionResetError(f"the reader took nothing for {self._patience:g} seconds") from None

    @abc.abstractmethod
    async def fail(self, error: Exception, request_id: str) -> web.StreamResponse:
        """End the stream with an error: the status line has long gone out."""


class NamedEvents(EventStream):
    """Events that have their data's `type` for a name, as Anthropic's do. Nothing but the last one's type ends them."""

    @staticmethod
    def event(data: msgspec.Struct) -> bytes:
        """A tagged struct as an event."""
        return b"event: %s\ndata: %s\n\n" % (str(data.__struct_config__.tag).encode(), _encoder.encode(data))

    async def fail(self, error: Exception, request_id: str) -> web.StreamResponse:
        await self.write([self.event(message_error(*describe(error, request_id), request_id))])
        return await self.close()


class ChunkWriter(EventStream):
    """Writes chunks of one answer: everything that does not change between them is encoded once."""

    def __init__(self, head: dict[str, object], *, usage_key: bool) -> None:
        super().__init__()
        self._head = b"data: " + _encoder.encode(head)[:-1] + _CHOICES
        self._tail = b'],"usage":null}\n\n' if usage_key else b"]}\n\n"

    def chunk(self, choice: Any, usage: Any | None = None, prompt: list[int] | None = None) -> bytes:
        """One choice's piece as an event, with `usage` so far and the prompt's tokens where the client asked for them."""
        tail = self._tail if usage is None else b'],"usage":' + _encoder.encode(usage) + b"}\n\n"
        head = self._head
        if prompt is not None:
            head = head.removesuffix(_CHOICES) + b',"prompt_token_ids":' + _encoder.encode(prompt) + _CHOICES
        return head + _encoder.encode(choice) + tail

    def usage(self, usage: Any) -> bytes:
        """The last chunk, which has counts and no choices."""
        return self._head + b'],"usage":' + _encoder.encode(usage) + b"}\n\n"

    async def close(self) -> web.StreamResponse:
        """End the stream."""
        await self.write([_DONE])
        return await super().close()

    async def fail(self, error: Exception, request_id: str) -> web.StreamResponse:
        _, body = describe(error, request_id)
        await self.write([b"data: " + _encoder.encode(body) + b"\n\n"])
        return await self.close()
