"""Traces: what a collector gets of the requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fake_server import servers
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from plain_http import post, send

from core.cli.main import main
from core.errors import ConfigError
from core.server import tracing
from core.server.options import ServerOptions

COMPLETION = "/v1/completions"
SAY = {"prompt": "a secret", "max_tokens": 5, "temperature": 0.5}


class Collector:
    """Takes traces over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def by_status(self) -> dict[int, Any]:
        return {attributes(span)["http.response.status_code"]: span for span in self.spans}


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def test_each_request_is_a_span(collector: Collector) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with servers() as start:
        server = start(ServerOptions(otlp_traces_endpoint=collector.url))
        headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "mine"}
        assert post(server.url, COMPLETION, SAY, headers)[0] == 200
        assert post(server.url, COMPLETION, {**SAY, "temperature": "hot"})[0] == 400
        assert send(server.url, "GET", "/no/such")[0] == 404
        server.engine.error = RuntimeError("broken")
        assert post(server.url, COMPLETION, SAY)[0] == 500
    spans = collector.by_status()
    assert set(spans) == {200, 400, 404, 500} and collector.services == {"core"}
    good, given = spans[200], attributes(spans[200])
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (trace, parent)
    assert good.name == f"POST {COMPLETION}" and good.end_time_unix_nano > good.start_time_unix_nano
    expected = {
        "http.request.method": "POST", "http.route": COMPLETION, "gen_ai.request.id": "mine",
        "gen_ai.request.model": "fake/model", "gen_ai.request.max_tokens": 5, "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.completion_tokens": 5,
    }  # fmt: skip
    assert expected.items() <= given.items() and given["gen_ai.latency.time_to_first_token"] > 0
    assert "secret" not in str(collector.spans)
    assert attributes(spans[404])["http.route"] == "none"
    assert [status for status, span in spans.items() if span.status.code == 2] == [500]


def test_a_collector_that_is_not_there_changes_no_answer() -> None:
    with servers() as start:
        server = start(ServerOptions(otlp_traces_endpoint="http://127.0.0.1:9/v1/traces"))
        assert post(server.url, COMPLETION, SAY)[0] == 200


def test_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, serve: Callable[..., Any]
) -> None:
    assert main(["serve", "--otlp-traces-endpoint", "localhost:4318"]) == 1
    assert "it looks like http://" in capsys.readouterr().err
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'core\[otel\]'"):
        serve(ServerOptions(otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces"))
