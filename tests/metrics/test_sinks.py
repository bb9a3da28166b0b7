"""Sinks beside Prometheus: told of everything, and no danger to anything."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import PluginLoadError
from core.extensions import Extension
from core.metrics import FinishedChoice, Metrics, make_metrics

CHOICE = FinishedChoice(
    request_id="cmpl-1",
    index=0,
    reason="stop",
    prompt_tokens=3,
    cached_tokens=1,
    generated_tokens=2,
    max_tokens=16,
    seconds=0.5,
    first_token_seconds=0.25,
    seconds_per_token=0.25,
)

RECORDER = """
from core.metrics.base import MetricsSink

TOLD = []

class Sink(MetricsSink):
    def __init__(self, model, options):
        TOLD.append(("made", model, dict(options)))

    def first_token(self, seconds):
        TOLD.append(("first", seconds))

    def next_token(self, seconds):
        TOLD.append(("next", seconds))

    def finished(self, choice):
        TOLD.append(("finished", choice))

    def close(self):
        TOLD.append(("closed",))
"""
FAILING = RECORDER.replace("TOLD.append((", "fail((").replace('fail(("made"', 'TOLD.append(("made"') + (
    "\ndef fail(event):\n    raise OSError(event[0])\n"
)

_numbers = itertools.count()
Sink = Callable[..., Extension]


@pytest.fixture
def sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sink:
    """A sink of a plugin, made of its module's source."""

    def add(name: str, source: str, attribute: str = "Sink", **options: str) -> Extension:
        module = f"sink_{next(_numbers)}"
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return Extension(
            kind="metrics_sinks",
            name=name,
            target=f"{module}:{attribute}",
            plugin="acme",
            distribution="acme-sinks 1.0",
            options=options,
        )

    return add


def told(extension: Extension) -> list[tuple[Any, ...]]:
    """What a recorder was told."""
    found: list[tuple[Any, ...]] = sys.modules[extension.target.partition(":")[0]].TOLD
    return found


def tell_all(metrics: Metrics) -> None:
    metrics.first_token(0.25)
    metrics.next_token(0.125)
    metrics.finished(CHOICE)


def figure(metrics: Metrics, name: str) -> float:
    body, _ = metrics.render(None)
    (value,) = [line.rsplit(" ", 1)[1] for line in body.decode().splitlines() if line.startswith(f"core:{name}")]
    return float(value)


def test_a_sink_is_told_what_prometheus_is(sink: Sink) -> None:
    extension = sink("x", RECORDER, host="example")
    metrics = make_metrics("model", [extension])
    tell_all(metrics)
    metrics.close()
    made = ("made", "model", {"host": "example"})
    assert told(extension) == [made, ("first", 0.25), ("next", 0.125), ("finished", CHOICE), ("closed",)]
    assert figure(metrics, "time_to_first_token_seconds_count") == 1
    assert figure(metrics, 'request_success_total{finished_reason="stop"') == 1


def test_a_sink_that_raises_keeps_nothing_from_the_others(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    failing, fine = sink("failing", FAILING), sink("fine", RECORDER)
    metrics = make_metrics("model", [failing, fine])
    tell_all(metrics)
    metrics.close()
    assert [event[0] for event in told(fine)] == ["made", "first", "next", "finished", "closed"]
    assert figure(metrics, 'metrics_sink_errors_total{model_name="model",sink="failing"}') == 4
    assert figure(metrics, "time_to_first_token_seconds_count") == 1
    (record,) = [record for record in caplog.records if "metrics sink" in record.message]
    assert vars(record)["fields"]["distribution"] == "acme-sinks 1.0"
    assert record.exc_info is not None and isinstance(record.exc_info[1], OSError)


def test_a_sink_that_goes_on_failing_is_named_once_a_minute(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    metrics = make_metrics("model", [sink("failing", FAILING)], lambda: now[0])
    for now[0] in (0.0, 1.0, 59.0, 60.0, 119.0, 121.0):
        metrics.next_token(0.1)
    assert [vars(record)["fields"]["errors"] for record in caplog.records] == [1, 4, 6]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module", "no_such_module"),
        ("def Sink(model, options): raise OSError('no host')", "cannot be made: OSError: no host"),
        ("def Sink(model, options): return 7", "made 7 where a core.metrics.base.MetricsSink is due"),
        (
            "from core.metrics.base import MetricsSink\nclass Sink(MetricsSink):\n    def __init__(self, *given): ...",
            "abstract",
        ),
    ],
)
def test_a_sink_that_cannot_be_made_names_its_distribution(sink: Sink, source: str, words: str) -> None:
    with pytest.raises(PluginLoadError, match=r"acme-sinks 1\.0") as caught:
        make_metrics("model", [sink("x", source)])
    assert words in str(caught.value)
