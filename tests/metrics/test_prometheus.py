"""The engine's counters under the names that dashboards know."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import core
from core.engine.messages import EngineStatus
from core.metrics.base import FinishedChoice
from core.metrics.prometheus import PrometheusMetrics
from core.types import EngineStats, KVTransferStats


def test_what_a_kv_connector_does_can_be_seen() -> None:
    stats = EngineStats(
        external_prefix_queries=64,
        external_prefix_hits=48,
        kv_transfers=KVTransferStats(saved=5, loaded=3, failed=2, dropped=1),
    )
    text = PrometheusMetrics("m").render(stats)[0].decode()
    for name, value in {
        "external_prefix_cache_queries_total": 64,
        "external_prefix_cache_hits_total": 48,
        "kv_connector_blocks_saved_total": 5,
        "kv_connector_blocks_loaded_total": 3,
        "kv_connector_blocks_failed_total": 2,
        "kv_connector_blocks_dropped_total": 1,
    }.items():
        assert f'core:{name}{{model_name="m"}} {value}.0\n' in text


def sample(text: str, name: str) -> float:
    """The value of a sample whose labels are the model's only."""
    (line,) = (line for line in text.splitlines() if line.startswith(f'{name}{{model_name="m"}} '))
    return float(line.split()[-1])


def test_with_vllms_prefix_every_name_is_vllms() -> None:
    metrics = PrometheusMetrics("m", prefix="vllm:")
    text = metrics.render(EngineStats(running=3))[0].decode()
    assert sample(text, "vllm:num_requests_running") == 3
    assert "core:" not in text


def test_phases_of_a_request() -> None:
    metrics = PrometheusMetrics("m")
    finished = FinishedChoice(
        request_id="a", index=0, reason="stop", prompt_tokens=8, cached_tokens=0, generated_tokens=5, max_tokens=9,
        seconds=3.1, first_token_seconds=1.0, seconds_per_token=0.5, queue_seconds=0.25, num_choices=2,
    )  # fmt: skip
    metrics.finished(finished)
    text = metrics.render(None)[0].decode()
    for phase, seconds in {"queue": 0.25, "prefill": 0.75, "decode": 2.0, "inference": 2.75}.items():
        assert sample(text, f"core:request_{phase}_time_seconds_sum") == seconds
        assert sample(text, f"core:request_{phase}_time_seconds_count") == 1
    assert sample(text, "core:request_params_max_tokens_sum") == 9
    assert sample(text, "core:request_params_n_sum") == 2


def test_one_without_a_token_has_no_phases() -> None:
    metrics = PrometheusMetrics("m")
    finished = FinishedChoice(
        request_id="a", index=0, reason="abort", prompt_tokens=8, cached_tokens=0, generated_tokens=0, max_tokens=9,
        seconds=3.1, first_token_seconds=None, seconds_per_token=None,
    )  # fmt: skip
    metrics.finished(finished)
    assert sample(metrics.render(None)[0].decode(), "core:request_queue_time_seconds_count") == 0


def test_what_runs_here_and_how_its_memory_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_USAGE_SOURCE", "production-docker-image")
    status = EngineStatus(platform="sim", restarts=2, memory_plan={"weights": 100, "free": 50, "num_blocks": 7})
    text = PrometheusMetrics("m").render(None, status)[0].decode()
    labels = f'model_name="m",platform="sim",usage_source="production-docker-image",version="{core.__version__}"'
    assert f"core:server_info{{{labels}}} 1.0\n" in text
    assert sample(text, "core:engine_restarts_total") == 2
    parts = re.findall(r'memory_plan_bytes\{model_name="m",part="(\w+)"\} (\S+)', text)
    assert sorted(parts) == [("free", "50.0"), ("weights", "100.0")], "num_blocks is no part of memory"


_FRONTEND = """
import sys
from core.metrics.prometheus import PrometheusMetrics
metrics = PrometheusMetrics("m")
for seconds in sys.argv[1:]:
    metrics.first_token(float(seconds))
    metrics.http("POST", "/v1/completions", 200, 0.1)
print(metrics.render(None)[0].decode())
"""


def test_frontends_of_one_server_count_together_and_what_has_ended_stays_counted(tmp_path: Path) -> None:
    texts = [
        subprocess.run(
            [sys.executable, "-c", _FRONTEND, *seconds],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seconds in (["0.5", "3"], ["3"], [])
    ]
    name = "core:time_to_first_token_seconds"
    assert [sample(text, f"{name}_count") for text in texts] == [2, 3, 3]
    assert [sample(text, f"{name}_sum") for text in texts] == [3.5, 6.5, 6.5]
    assert f'{name}_bucket{{le="0.5",model_name="m"}} 1.0\n' in texts[2]
    assert f'{name}_bucket{{le="5.0",model_name="m"}} 3.0\n' in texts[2]
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 3.0\n' in texts[2]
    assert 'core:engine_up{model_name="m"} 0.0\n' in texts[2]
    assert "process_cpu_seconds_total" not in texts[2]  # whose would it be?
