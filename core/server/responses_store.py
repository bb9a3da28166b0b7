"""Responses that clients may ask for again, or go on from: the newest ones, in this process's memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import msgspec
from aiohttp import web

from core.errors import NotFound
from core.server.responses_format import ResponseBody
from core.server.responses_protocol import Item

#: Bytes of all stored items as JSON, beyond which the oldest responses are forgotten.
MAX_BYTES = 64 << 20


@dataclass
class StoredResponse:
    """A response with the items it answers: `earlier` are those of the responses before it, `given` its own input.

    `owner` is the number of the key that it was made with, None where none is needed: to any other it does not exist.
    """

    response: ResponseBody
    earlier: list[Item]
    given: list[Item]
    owner: int | None = None
    task: asyncio.Task[None] | None = None  # while it runs in the background

    def conversation(self) -> list[Item]:
        """What a response that follows goes on from."""
        return [*self.earlier, *self.given, *self.response.output]


class ResponseStore:
    """At most `capacity` responses and `max_bytes` bytes; what was used least lately goes first."""

    def __init__(self, capacity: int, max_bytes: int = MAX_BYTES) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bytes = 0

    def put(self, stored: StoredResponse) -> None:
        """Keep a response, or what it has become. One that is larger than the whole store is not kept."""
        response_id = stored.response.id
        self._drop(response_id)
        size = len(msgspec.json.encode((stored.response, stored.given)))
        self._responses[response_id], self._sizes[response_id] = stored, size
        self._bytes += size
        while len(self._responses) > self._capacity or self._bytes > self._max_bytes:
            self._drop(next(iter(self._responses)))

    def get(self, response_id: str, owner: int | None = None, *, param: str = "response_id") -> StoredResponse:
        """Raises NotFound, also where it is another's."""
        stored = self._responses.get(response_id)
        if stored is None or stored.owner != owner:
            message = (
                f"{param}: there is no response {response_id[:64]!r}; the server keeps the newest ones that were made "
                "with store, until it ends"
            )
            raise NotFound(message, param=param, code="response_not_found")
        self._responses.move_to_end(response_id)
        return stored

    def delete(self, response_id: str, owner: int | None = None) -> None:
        """Forget a response, and end it if it runs. Raises NotFound."""
        self.get(response_id, owner)
        self._drop(response_id)

    def conversation(self, response_id: str | None, owner: int | None = None) -> list[Item]:
        """The items that a response after `response_id` goes on from; none for None. Raises NotFound."""
        if response_id is None:
            return []
        return self.get(response_id, owner, param="previous_response_id").conversation()

    def _drop(self, response_id: str) -> None:
        stored = self._responses.pop(response_id, None)
        if stored is None:
            return
        self._bytes -= self._sizes.pop(response_id)
        if stored.task is not None:
            stored.task.cancel()


RESPONSES: web.AppKey[ResponseStore] = web.AppKey("responses", ResponseStore)
