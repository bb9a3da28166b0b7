"""What the terminal clients share: a streamed request to a server, and its errors in plain words."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from core import envs
from core.errors import CoreError

DEFAULT_URL = "http://127.0.0.1:8000"


class ServerError(CoreError):
    """A server that does not answer, or answers with an error."""


def add_arguments(parser: argparse.ArgumentParser, *, max_tokens: int | None = None) -> None:
    """The flags of a request: which server, which model, how to choose tokens.

    At a terminal answers are drawn a little below temperature 1, where small models ramble.
    """
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--model", help="the model's name (default: the first one that is served)")
    parser.add_argument("--api-key", help="the server's key (default: CORE_API_KEY)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"end an answer after N tokens (default: {max_tokens or 'when the context is full'})",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        metavar="T",
        help="0: always the likeliest token (default: %(default)s)",
    )
    parser.add_argument("--top-p", type=float, metavar="P", help="only of the likeliest tokens that make up P")
    parser.add_argument("--top-k", type=int, metavar="K", help="only of the K likeliest tokens")
    parser.add_argument("--min-p", type=float, metavar="P", help="no token less likely than P times the likeliest")
    parser.add_argument("--seed", type=int, help="equal seeds give equal answers")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that were given as flags."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


class Connection:
    """A session with one server. Raises ServerError from every call."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session = session
        self._url = url
        self.model = model

    async def stream(self, route: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The first choice of each chunk of a streamed answer."""
        request = {"model": self.model, "stream": True, **body}
        try:
            async with self._session.post(f"{self._url}{route}", json=request) as response:
                await _check(response)
                async for line in response.content:
                    if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                        event = msgspec.json.decode(line[6:])
                        if "error" in event:
                            raise ServerError(event["error"]["message"])
                        for choice in event["choices"]:
                            yield choice
        except aiohttp.ClientError as error:
            raise ServerError(f"{self._url} broke off: {error}") from error


@asynccontextmanager
async def connect(args: argparse.Namespace) -> AsyncIterator[Connection]:
    """A connection to the server that `args` name. Raises ServerError."""
    key = args.api_key or envs.read().api_key
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = args.url.rstrip("/").removesuffix("/v1")
    # An answer takes as long as it takes; only connecting has a limit.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield Connection(session, url, args.model or await _first_model(session, url))


async def _first_model(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f"{url}/v1/models") as response:
            await _check(response)
            models = await response.json()
            return str(models["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ServerError(
            f"no server answers at {url}; start one with `core serve`, or name another with --url"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"{url} does not speak OpenAI's API: {url}/v1/models names no model") from error


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == 200:
        return
    text = await response.text()
    try:
        message = msgspec.json.decode(text)["error"]["message"]
    except (msgspec.DecodeError, LookupError, TypeError):
        message = text[:200]
    raise ServerError(f"{response.url} answered {response.status}: {message}")
