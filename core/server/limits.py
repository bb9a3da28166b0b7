"""What one client, or all together, may have waiting here at once. Counted by each frontend process for itself, which is
given its part of the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from core.errors import ConfigError, QueueFull
from core.server.authorize import KEY_NUMBER
from core.server.errors import Handler
from core.server.frontends import FRONTENDS
from core.server.options import ServerOptions
from core.server.plugin_routes import is_api
from core.server.state import STATE


class KeyLimited(QueueFull):
    """A key that has more requests running, or has made more a minute, than one may."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.code = "rate_limit_exceeded"


class KeyLimits:
    """Requests that run for each key, and a token bucket for each: a minute's worth at once, then at the rate.

    `concurrency` and `per_minute` are 0 where there is no such limit.
    """

    def __init__(self, concurrency: int, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._concurrency = concurrency
        self._per_minute = per_minute
        self._clock = clock
        self._running: dict[int, int] = {}
        self._buckets: dict[int, tuple[float, float]] = {}  # requests left, and when that was so

    @contextmanager
    def running(self, key: int) -> Iterator[None]:
        """A request of the key runs inside. Raises KeyLimited, which costs the key nothing."""
        running = self._running.get(key, 0)
        if 0 < self._concurrency <= running:
            raise KeyLimited(f"{running} requests of this key are running already (--max-concurrency-per-key)")
        if self._per_minute:
            self._take(key)
        self._running[key] = running + 1
        try:
            yield
        finally:
            self._running[key] -= 1

    def _take(self, key: int) -> None:
        now, rate = self._clock(), self._per_minute / 60
        left, then = self._buckets.get(key, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - then) * rate)
        if left < 1:
            message = f"this key has made its {self._per_minute} requests a minute (--rate-limit-per-key)"
            raise KeyLimited(message, retry_after_s=(1 - left) / rate)
        self._buckets[key] = left - 1, now


def key_limits(options: ServerOptions, *, has_keys: bool) -> KeyLimits:
    """The limits that the options set. Raises ConfigError where there are no keys that they could be of."""
    for flag, value in (
        ("--max-concurrency-per-key", options.max_concurrency_per_key),
        ("--rate-limit-per-key", options.rate_limit_per_key),
    ):
        if value and not has_keys:
            raise ConfigError(flag, "clients need no key here; --api-key or CORE_API_KEY gives them one")
    return KeyLimits(options.max_concurrency_per_key, options.rate_limit_per_key)


def shared(options: ServerOptions, frontends: int) -> ServerOptions:
    """The options of each of so many frontends, between whom the limits are divided, rounded up."""

    def part(whole: int) -> int:
        return -(-whole // frontends)

    return msgspec.structs.replace(
        options,
        max_concurrency_per_key=part(options.max_concurrency_per_key),
        rate_limit_per_key=part(options.rate_limit_per_key),
        max_queued_tokens=part(options.max_queued_tokens),
    )


def limiter(limits: KeyLimits) -> Middleware:
    """A middleware that holds clients' requests to the API to the limits. Administrators have none."""

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        number = request.get(KEY_NUMBER)
        if number is None or request.app[STATE].keys.is_admin(number) or not is_api(request):
            return await handler(request)
        if request.app[FRONTENDS].passed_on(request):
            return await handler(request)
        with limits.running(number):
            return await handler(request)

    return limit
