"""The example's configuration in a real Prometheus that scrapes a real server under load."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboards import DASHBOARDS, EXAMPLE, panel_queries, rules
from free_ports import free_ports
from real_server import real_server, until
from steady_load import steady_load

pytestmark = pytest.mark.deploy

#: Alerts and queries look back at least as far as this: two scrapes and more.
_INTERVAL = "10s"


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **arguments: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/{path}?{urllib.parse.urlencode(arguments)}") as answer:
            return json.load(answer)["data"]

    def query(self, text: str) -> list[float]:
        """The values, of each series one."""
        return [float(series["value"][1]) for series in self.get("query", query=text)["result"]]

    def is_up(self) -> bool:
        try:
            return self.query("up") == [1.0]
        except OSError:
            return False


def installed(name: str) -> str:
    command = shutil.which(name)
    assert command, f"{name} is needed: apt-get install prometheus"
    return command


@pytest.fixture(scope="module")
def prometheus(sim_arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """After some seconds of load, which goes on."""
    directory = tmp_path_factory.mktemp("prometheus")
    shutil.copy(EXAMPLE / "rules.yaml", directory)
    with real_server(*sim_arguments) as server, steady_load(server.url, max_tokens=5):
        text = (EXAMPLE / "prometheus.yaml").read_text()
        assert text.count("core:8000") == 1 and text.count(": 5s") == 2
        text = text.replace("core:8000", server.url.removeprefix("http://")).replace(": 5s", ": 1s")
        (directory / "prometheus.yaml").write_text(text)
        (port,) = free_ports(1)
        log = (directory / "log").open("wb")
        process = subprocess.Popen(
            [installed("prometheus"), f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/db",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
        )  # fmt: skip
        try:
            prometheus = Prometheus(port)
            until(prometheus.is_up)
            time.sleep(8)  # scrapes to make rates of
            yield prometheus
        finally:
            process.terminate()
            assert process.wait(30) == 0, (directory / "log").read_text()
            log.close()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_each_query_returns_data_under_load(dashboard: Path, prometheus: Prometheus) -> None:
    """A number in some series at least: a route that nobody asks has a percentile of nothing."""
    for title, query in panel_queries(dashboard):
        filled = query.replace("$__rate_interval", _INTERVAL).replace("$model", ".*").replace("$instance", ".*")
        values = prometheus.query(filled)
        assert not all(map(math.isnan, values)), (title, filled, values)


def test_the_recording_rules_record(prometheus: Prometheus) -> None:
    for rule in rules():
        if "record" in rule:
            assert prometheus.query(rule["record"]), rule


def test_no_alert_fires_while_all_is_well(prometheus: Prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if rule["type"] == "alerting"]
    assert alerts and all(rule["health"] == "ok" for rule in alerts)
    assert [rule["name"] for rule in alerts if rule["state"] != "inactive"] == []


def test_promtool_passes_the_configuration_and_its_rules() -> None:
    checked = subprocess.run(
        [installed("promtool"), "check", "config", "--lint-fatal", str(EXAMPLE / "prometheus.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"SUCCESS: {len(rules())} rules found" in checked.stdout


def test_what_the_server_exports_is_as_prometheus_wants_it() -> None:
    """`promtool check metrics`: names, units, help texts."""
    from core.metrics.prometheus import PrometheusMetrics
    from core.types import EngineStats

    text, _ = PrometheusMetrics("m").render(EngineStats())
    checked = subprocess.run([installed("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    complaints = [
        line
        for line in checked.stderr.decode().splitlines()
        if "should not contain ':'" not in line  # the prefix of vLLM's kind, which dashboards know
    ]
    assert complaints == [], complaints
