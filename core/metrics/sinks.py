"""One frontend's metrics: Prometheus, and the sinks that plugins add."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from core.engine.messages import EngineStatus
from core.extensions import Extension
from core.logs import get_logger
from core.metrics.base import FinishedChoice, MetricsSink
from core.metrics.prometheus import DEFAULT_PREFIX, PrometheusMetrics
from core.types import EngineStats

log = get_logger("metrics")

#: Seconds between two lines about a sink that goes on failing.
_QUIET_S = 60.0


class Metrics(MetricsSink):
    """Passes each event on to all, so that none that fails keeps it from the others or from the request."""

    def __init__(self, prometheus: PrometheusMetrics, sinks: Iterable[GuardedSink] = ()) -> None:
        self._prometheus = prometheus
        self._sinks = tuple(sinks)

    def first_token(self, seconds: float) -> None:
        self._prometheus.first_token(seconds)
        for sink in self._sinks:
            sink.tell(lambda to: to.first_token(seconds))

    def next_token(self, seconds: float) -> None:
        self._prometheus.next_token(seconds)
        for sink in self._sinks:
            sink.tell(lambda to: to.next_token(seconds))

    def finished(self, choice: FinishedChoice) -> None:
        self._prometheus.finished(choice)
        for sink in self._sinks:
            sink.tell(lambda to: to.finished(choice))

    def http(self, method: str, handler: str, status: int, seconds: float) -> None:
        """A request was answered; `handler` is its route's pattern, or `none`."""
        self._prometheus.http(method, handler, status, seconds)

    def close(self) -> None:
        for sink in self._sinks:
            sink.tell(lambda to: to.close())

    def render(self, stats: EngineStats | None, status: EngineStatus | None = None) -> tuple[bytes, str]:
        """Prometheus' text, with the engine's figures where there are any: body and content type."""
        return self._prometheus.render(stats, status)


class GuardedSink:
    """A plugin's sink, whose errors end here: one line at the first, at most one a minute after it, all of them counted."""

    def __init__(
        self, extension: Extension, sink: MetricsSink, count_error: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._extension = extension
        self._sink = sink
        self._count_error = count_error
        self._clock = clock
        self._logged: float | None = None
        self._errors = 0

    def tell(self, event: Callable[[MetricsSink], None]) -> None:
        """Pass one event on."""
        try:
            event(self._sink)
        except Exception as error:  # whatever a stranger's sink raises
            self._errors += 1
            self._count_error(self._extension.name)
            self._log(error)

    def _log(self, error: Exception) -> None:
        now = self._clock()
        if self._logged is not None and now - self._logged < _QUIET_S:
            return
        self._logged = now
        log.error(
            "a metrics sink raised; requests go on",
            sink=self._extension.name,
            distribution=self._extension.distribution,
            errors=self._errors,
            exc_info=error,
        )


def make_metrics(
    model: str,
    sinks: Iterable[Extension],
    clock: Callable[[], float] = time.monotonic,
    *,
    prefix: str = DEFAULT_PREFIX,
) -> Metrics:
    """The metrics of a frontend that serves `model`. Raises PluginLoadError for a sink that cannot be made."""
    prometheus = PrometheusMetrics(model, prefix)
    made = [(extension, _make(extension, model)) for extension in sinks]
    return Metrics(prometheus, [GuardedSink(extension, sink, prometheus.sink_error, clock) for extension, sink in made])


def _make(extension: Extension, model: str) -> MetricsSink:
    target = extension.load()
    try:
        sink = target(model, extension.options)
    except Exception as error:  # whatever a stranger's code raises
        raise extension.error(f"cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(sink, MetricsSink):
        raise extension.error(f"made {sink!r} where a core.metrics.base.MetricsSink is due")
    return sink
