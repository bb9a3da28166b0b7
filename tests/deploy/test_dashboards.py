"""The dashboards and rules name what a server exports, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboards import DASHBOARDS, load, metrics_of, panel_queries, rules, variable_queries

from core.engine.messages import EngineStatus
from core.metrics.prometheus import PrometheusMetrics
from core.types import EngineStats

#: Prometheus' own, of each target.
_OF_PROMETHEUS = {"up"}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Every sample's name; those of metrics that have no labels' values yet by their type."""
    text = PrometheusMetrics("m").render(EngineStats(), EngineStatus(memory_plan={"weights": 1}))[0].decode()
    lines = [line.split() for line in text.splitlines()]
    names = {line[0].partition("{")[0] for line in lines if line[0] != "#"}
    names |= {line[2] for line in lines if line[:2] == ["#", "TYPE"] and line[3] == "counter"}
    histograms = {line[2] for line in lines if line[:2] == ["#", "TYPE"] and line[3] == "histogram"}
    return names | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


def test_there_are_four_dashboards() -> None:
    names = [path.stem for path in DASHBOARDS]
    assert names == ["core-kv-scheduler", "core-latency", "core-overview", "core-platform"]
    assert names == [load(path)["uid"] for path in DASHBOARDS]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_names_metrics_that_the_server_exports(dashboard: Path, exported: set[str]) -> None:
    for title, query in panel_queries(dashboard):
        assert metrics_of(query) and metrics_of(query) <= exported, (title, metrics_of(query) - exported)
    for query in variable_queries(dashboard):
        assert metrics_of(query) - {"instance", "model_name"} <= exported, query


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_the_panels_lie_side_by_side(dashboard: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in load(dashboard)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_every_rule_names_metrics_that_exist(exported: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert recorded
    for rule in rules():
        assert metrics_of(rule["expr"]) <= exported | recorded | _OF_PROMETHEUS, rule


def test_every_alert_says_what_is_wrong_and_what_to_look_at() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["annotations"].keys() == {"summary", "description"} and alert["labels"]["severity"]


def test_metrics_are_told_from_the_language() -> None:
    query = 'sum by (le) (rate(core:a_bucket{model_name=~"$x", handler="b_c"}[$__rate_interval])) / time() > 0'
    assert metrics_of(query) == {"core:a_bucket"}
