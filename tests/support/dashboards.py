"""The example's dashboards and rules, as queries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "online_serving" / "prometheus_grafana"
DASHBOARDS = sorted((EXAMPLE / "grafana" / "dashboards").glob("*.json"))

_STRING = re.compile(r'"[^"]*"')
_METRIC = re.compile(r"(?<![\w:.])[a-z_][\w:]*(?![\w:]*\s*\()(?![\w:]*\s*(?:=~|!~|!=|=(?!=)))")
#: PromQL's own words, and the labels that queries group by.
_WORDS = {"sum", "max", "by", "and", "or", "unless", "on", "without", "le", "instance", "status", "handler", "part", "finished_reason",
          "model_name"}  # fmt: skip


def load(dashboard: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(dashboard.read_text())
    return loaded


def panel_queries(dashboard: Path) -> Iterator[tuple[str, str]]:
    """Each panel's title with each of its queries."""
    for panel in load(dashboard)["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def variable_queries(dashboard: Path) -> list[str]:
    return [variable["query"]["query"] for variable in load(dashboard)["templating"]["list"]]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((EXAMPLE / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_of(query: str) -> set[str]:
    """The metrics that a query reads."""
    bare = re.sub(r"\[[^\]]*\]", "", _STRING.sub('""', query))
    return {name for name in _METRIC.findall(bare) if name not in _WORDS}
