"""A trace of each request, sent to a collector by OpenTelemetry's protocol (OTLP over HTTP, opentelemetry.io/docs/specs/otlp).

The span goes on from the client's (W3C Trace Context, `traceparent`) where it has one. Names of attributes are those of
OpenTelemetry's semantic conventions for HTTP and generative AI, and vLLM's for latencies. What was asked and answered is in none.
"""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from aiohttp import web

import core
from core.errors import ConfigError
from core.server.errors import CLIENT_LEFT, REQUEST_ID, Handler
from core.server.generation import GENERATION, Generation
from core.server.options import ServerOptions
from core.server.paths import pattern

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_FLAG = "--otlp-traces-endpoint"


def make_tracing(options: ServerOptions, model: str) -> Tracing | None:
    """None where no traces are wanted. Raises ConfigError."""
    check_tracing(options)
    return None if options.otlp_traces_endpoint is None else Tracing(options.otlp_traces_endpoint, model)


def check_tracing(options: ServerOptions) -> None:
    """Raises ConfigError where traces are wanted and cannot be had."""
    endpoint = options.otlp_traces_endpoint
    if endpoint is None:
        return
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(_FLAG, f"{endpoint!r} is no URL; it looks like http://127.0.0.1:4318/v1/traces")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise ConfigError(_FLAG, "OpenTelemetry is not installed: pip install 'core[otel]'")


class Tracing:
    """Traces of one frontend. Spans leave in batches, from a thread of OpenTelemetry's; what cannot be sent is dropped."""

    def __init__(self, endpoint: str, model: str) -> None:
        # Heavy, and only where it is asked for.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({SERVICE_NAME: "core", SERVICE_VERSION: core.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("core.server")
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    @web.middleware
    async def trace(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A span from the request's headers to the end of its answer."""
        started, status = time.time_ns(), CLIENT_LEFT
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            self._record(request, started, status)

    def _record(self, request: web.Request, started: int, status: int) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        route = pattern(request)
        parent = self._propagator.extract(dict(request.headers.items()))
        span = self._tracer.start_span(
            f"{request.method} {route}", context=parent, kind=SpanKind.SERVER, start_time=started
        )
        span.set_attributes(
            {
                "http.request.method": request.method,
                "http.route": route,
                "http.response.status_code": status,
                "gen_ai.request.id": request.get(REQUEST_ID, ""),
            }
        )
        if (generation := request.get(GENERATION)) is not None:
            self._describe(span, generation)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def _describe(self, span: Span, generation: Generation) -> None:
        usage, params = generation.usage(), generation.requests[0].params
        attributes: dict[str, Any] = {
            "gen_ai.request.model": self._model,
            "gen_ai.response.id": generation.id,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.n": params.n,
            "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
            "gen_ai.usage.completion_tokens": usage.completion_tokens,
            "gen_ai.latency.time_to_first_token": generation.first_token_seconds(),
            "gen_ai.latency.time_in_queue": generation.queue_seconds(),
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    async def close(self, app: web.Application) -> None:
        """Send what is still kept."""
        del app
        await asyncio.to_thread(self._provider.shutdown)
