"""The engine's counters under the names that dashboards know."""

from __future__ import annotations

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
