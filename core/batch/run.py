"""Sends a batch's requests to a server, a bounded number at a time, and keeps the answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import aiohttp
import msgspec

from core.batch.files import AnswerFile, BatchAnswer, BatchRequest, BatchResponse
from core.errors import CoreError

#: Statuses of a server that will take the request later.
_LATER = (429, 503)
_LONGEST_WAIT_S = 10.0


class ServerLost(CoreError):
    """The server does not answer any more."""


@dataclass
class Tally:
    """How a batch went, in lines."""

    answered: int = 0
    refused: int = 0  # of them, those with a status of 400 and more


class _Usage(msgspec.Struct):
    completion_tokens: int = 0
    output_tokens: int = 0


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


class BatchRunner:
    """`done` is called after each answer with the tokens that it has. `patience` is how often in a row a request may
    fail to reach the server before the batch ends; a server that is busy is waited for without end."""

    def __init__(
        self,
        url: str,
        answers: AnswerFile,
        done: Callable[[int], None],
        *,
        concurrency: int,
        api_key: str | None = None,
        patience: int = 8,
    ) -> None:
        self._url = url.rstrip("/")
        self._answers = answers
        self._done = done
        self._concurrency = concurrency
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._patience = patience
        self._tally = Tally()

    async def run(self, requests: Iterable[BatchRequest]) -> Tally:
        """Answer what is not answered yet. Raises ServerLost, and whatever reading the requests does."""
        waiting = (request for request in requests if request.custom_id not in self._answers.done)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers) as session:
            tasks = [asyncio.create_task(self._take(session, waiting)) for _ in range(self._concurrency)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return self._tally

    async def _take(self, session: aiohttp.ClientSession, waiting: Iterator[BatchRequest]) -> None:
        for request in waiting:
            answer = await self._answer(session, request)
            self._answers.append(answer)
            assert answer.response is not None
            self._tally.answered += 1
            self._tally.refused += answer.response.status_code >= 400
            self._done(_tokens(answer.response.body))

    async def _answer(self, session: aiohttp.ClientSession, request: BatchRequest) -> BatchAnswer:
        failures = 0
        while True:
            try:
                async with session.post(self._url + request.url, data=bytes(request.body)) as response:
                    if response.status not in _LATER:
                        return await _read(request, response)
                    wait = float(response.headers.get("Retry-After", "1"))
                    failures = 0
            except (aiohttp.ClientError, TimeoutError) as error:
                failures += 1
                if failures > self._patience:
                    message = f"{self._url} does not answer: {error}; run the same command again to go on"
                    raise ServerLost(message) from error
                wait = 0.1 * 2**failures
            await asyncio.sleep(min(wait, _LONGEST_WAIT_S))


async def _read(request: BatchRequest, response: aiohttp.ClientResponse) -> BatchAnswer:
    content = await response.read()
    if response.content_type != "application/json":  # a stream, or a route that is none of the API's
        content = msgspec.json.encode(content.decode(errors="replace"))
    request_id = response.headers.get("X-Request-Id", "")
    body = BatchResponse(response.status, request_id, msgspec.Raw(content))
    return BatchAnswer(f"batch_req_{secrets.token_hex(16)}", request.custom_id, body)


def _tokens(body: msgspec.Raw) -> int:
    try:
        usage = msgspec.json.decode(body, type=_Counted).usage
    except msgspec.MsgspecError:
        return 0
    return usage.completion_tokens or usage.output_tokens if usage is not None else 0
