"""Metrics for Prometheus. Names and buckets are vLLM's, with a prefix of our own: with vLLM's its dashboards serve as they are.

The engine's figures are pulled from it when scraped, and those of requests are the sum over all frontends, ended ones
included: they are the same whichever frontend answers. Several frontends count into prometheus_client's files for several
processes: they survive who wrote them, so no sum ever falls, and nobody has to ask a frontend that may hang.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

import core
from core import envs
from core.engine.messages import EngineStatus
from core.metrics.base import FinishedChoice, MetricsSink
from core.types import EngineStats

DEFAULT_PREFIX = "core:"

_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_NEXT_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))

_CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
_PHASES = {
    "queue": "From request until it first ran.",
    "prefill": "From then to its first token.",
    "decode": "From its first token to its last.",
    "inference": "From when it first ran to its last token.",
}

#: Of a memory plan, what is in bytes; `total` is the others together.
_PARTS = frozenset({"weights", "kv_cache", "activations", "inputs", "total", "free"})

_Value = Callable[[EngineStats], float]
_GAUGES: dict[str, tuple[str, _Value]] = {
    "num_requests_running": ("Requests in the running batch.", lambda stats: stats.running),
    "num_requests_waiting": ("Requests waiting to be run.", lambda stats: stats.waiting),
    "kv_cache_usage_perc": ("KV cache in use, 1 being all of it.", lambda stats: stats.kv_usage),
}
_COUNTERS: dict[str, tuple[str, _Value]] = {
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", lambda stats: stats.prefix_queries),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda stats: stats.prefix_hits),
    "external_prefix_cache_queries": (
        "Prompt tokens that the KV connector was asked for.",
        lambda stats: stats.external_prefix_queries,
    ),
    "external_prefix_cache_hits": (
        "Prompt tokens that the KV connector has brought.",
        lambda stats: stats.external_prefix_hits,
    ),
    "kv_connector_blocks_saved": ("Blocks saved, of one KV group each.", lambda stats: stats.kv_transfers.saved),
    "kv_connector_blocks_loaded": ("Blocks brought, of one KV group each.", lambda stats: stats.kv_transfers.loaded),
    "kv_connector_blocks_failed": (
        "Blocks whose save or load failed; they are computed.",
        lambda stats: stats.kv_transfers.failed,
    ),
    "kv_connector_blocks_dropped": (
        "Blocks that were not saved, for too many waited or the connector had just failed.",
        lambda stats: stats.kv_transfers.dropped,
    ),
    "num_preemptions": ("Requests put back to waiting for want of KV blocks.", lambda stats: stats.preemptions),
    "prompt_tokens": ("Prompt tokens taken in.", lambda stats: stats.prompt_tokens),
    "generation_tokens": ("Tokens generated.", lambda stats: stats.generated_tokens),
}


class _EngineCollector(Collector):
    """The engine's own figures, and what the supervisor says of it, as of the scrape."""

    def __init__(self, model: str, prefix: str) -> None:
        self.stats: EngineStats | None = None
        self.status = EngineStatus()
        self._usage_source = envs.read().usage_source
        self._model = model
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            f"{self._prefix}engine_up", "1 when the engine answered this scrape.", labels=["model_name"]
        )
        up.add_metric([self._model], 0.0 if self.stats is None else 1.0)
        yield up
        yield from self._of_status()
        if self.stats is None:
            return
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"{self._prefix}{name}", text, labels=["model_name"])
            gauge.add_metric([self._model], value(self.stats))
            yield gauge
        for name, (text, value) in _COUNTERS.items():
            counter = CounterMetricFamily(f"{self._prefix}{name}", text, labels=["model_name"])
            counter.add_metric([self._model], value(self.stats))
            yield counter

    def _of_status(self) -> Iterator[Metric]:
        labels = {"version": core.__version__, "platform": self.status.platform, "usage_source": self._usage_source}
        info = GaugeMetricFamily(
            f"{self._prefix}server_info", "1, with what runs here.", labels=["model_name", *labels]
        )
        info.add_metric([self._model, *labels.values()], 1.0)
        yield info
        restarts = CounterMetricFamily(
            f"{self._prefix}engine_restarts", "Engines that died since the server started.", labels=["model_name"]
        )
        restarts.add_metric([self._model], self.status.restarts)
        yield restarts
        memory = GaugeMetricFamily(
            f"{self._prefix}memory_plan_bytes", "The device's memory, by what it is for.", labels=["model_name", "part"]
        )
        for part in _PARTS & self.status.memory_plan.keys():
            memory.add_metric([self._model, part], self.status.memory_plan[part])
        yield memory


class PrometheusMetrics(MetricsSink):
    """A registry of its own: nothing is global, so several servers fit into one process."""

    def __init__(self, model: str, prefix: str = DEFAULT_PREFIX) -> None:
        self._model = model
        self._prefix = prefix
        self._registry = CollectorRegistry()
        self._engine = _EngineCollector(model, prefix)
        self._rendered = self._registry
        if (shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) is not None:  # as prometheus_client counts in files
            self._rendered = CollectorRegistry()
            MultiProcessCollector(self._rendered, shared)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=self._registry)
        self._rendered.register(self._engine)
        self._first_token = self._histogram("time_to_first_token_seconds", "From request to first token.", _FIRST_TOKEN)
        self._next_token = self._histogram("inter_token_latency_seconds", "Between successive tokens.", _NEXT_TOKEN)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, by request.", _NEXT_TOKEN
        )
        self._request = self._histogram("e2e_request_latency_seconds", "From request to last token.", _REQUEST)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt length, by request.", _TOKENS)
        self._generated = self._histogram("request_generation_tokens", "Answer length, by request.", _TOKENS)
        self._max_tokens = self._histogram(
            "request_params_max_tokens", "The most tokens asked for, by request.", _TOKENS
        )
        self._n = self._histogram("request_params_n", "Choices asked for, by request.", _CHOICES)
        self._phases = {
            name: self._histogram(f"request_{name}_time_seconds", text, _REQUEST) for name, text in _PHASES.items()
        }
        self._http_requests = Counter(
            "http_requests", "Answers, by status.", ["method", "status", "handler"], registry=self._registry
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "From request to the end of its answer.",
            ["method", "handler"],
            registry=self._registry,
            buckets=_REQUEST,
        )
        self._success = Counter(
            f"{prefix}request_success",
            "Choices ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._sink_errors = Counter(
            f"{prefix}metrics_sink_errors",
            "Events that a plugin's metrics sink raised on.",
            ["model_name", "sink"],
            registry=self._registry,
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"{self._prefix}{name}", text, ["model_name"], registry=self._registry, buckets=buckets)
        return histogram.labels(self._model)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._next_token.observe(seconds)

    def finished(self, choice: FinishedChoice) -> None:
        self._success.labels(self._model, choice.reason).inc()
        self._request.observe(choice.seconds)
        self._prompt.observe(choice.prompt_tokens)
        self._generated.observe(choice.generated_tokens)
        self._max_tokens.observe(choice.max_tokens)
        if choice.index == 0:
            self._n.observe(choice.num_choices)
        for name, seconds in _phases(choice).items():
            self._phases[name].observe(seconds)
        if choice.seconds_per_token is not None:
            self._per_token.observe(choice.seconds_per_token)

    def http(self, method: str, handler: str, status: int, seconds: float) -> None:
        """A request was answered; `handler` is its route's pattern, or `none`."""
        self._http_requests.labels(method, f"{status // 100}xx", handler).inc()
        self._http_seconds.labels(method, handler).observe(seconds)

    def sink_error(self, sink: str) -> None:
        """A plugin's sink raised."""
        self._sink_errors.labels(self._model, sink).inc()

    def render(self, stats: EngineStats | None, status: EngineStatus | None = None) -> tuple[bytes, str]:
        """Everything, with the engine's figures where there are any: body and content type."""
        self._engine.stats = stats
        self._engine.status = status or EngineStatus()
        return generate_latest(self._rendered), CONTENT_TYPE_LATEST


def _phases(choice: FinishedChoice) -> dict[str, float]:
    """Seconds of each phase of a choice that got a token: queue and inference add up to the time until its last one."""
    if choice.first_token_seconds is None or choice.queue_seconds is None:
        return {}
    queue, first = choice.queue_seconds, choice.first_token_seconds
    decode = (choice.seconds_per_token or 0.0) * (choice.generated_tokens - 1)
    prefill = max(first - queue, 0.0)
    return {"queue": queue, "prefill": prefill, "decode": decode, "inference": prefill + decode}
