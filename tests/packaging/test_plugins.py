"""The packages in plugins/ as third parties would have them: a wheel each, in a clean environment beside core's.

`make test-plugins` runs these; they need what the plugins need, like a redis-server.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packages
import pytest
from packages import ROOT, CleanEnvironment, run
from real_server import real_server

PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))

pytestmark = [pytest.mark.slow, pytest.mark.plugins]


def project(plugin: Path) -> dict[str, Any]:
    described: dict[str, Any] = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    return described


def platforms(plugin: Path) -> list[str]:
    return list(project(plugin)["entry-points"].get("core.platforms", {}))


PLATFORMS = [(plugin, name) for plugin in PLUGINS for name in platforms(plugin)]


def name(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


Installed = Callable[[Path], CleanEnvironment]


@pytest.fixture(scope="module")
def beside(installed: CleanEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], CleanEnvironment]:
    """The environment with core's wheel and that of one plugin; others are gone."""
    present: list[Path] = []

    def only(plugin: Path) -> CleanEnvironment:
        if present != [plugin]:
            while present:
                installed.uninstall(project(present.pop())["name"])
            installed.install(packages.wheel(packages.build(plugin, tmp_path_factory.mktemp(plugin.name))))
            present.append(plugin)
        return installed

    return only


@pytest.mark.parametrize("plugin", PLUGINS, ids=name)
def test_its_own_tests_pass_beside_the_wheel(beside: Installed, plugin: Path, tmp_path: Path) -> None:
    environment = beside(plugin)
    out = run(environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", plugin / "tests", cwd=tmp_path)
    passed = re.search(r"(\d+) passed", out)
    assert passed and int(passed[1]) > 0 and "skipped" not in out, out


@pytest.mark.parametrize(("plugin", "platform"), PLATFORMS, ids=name)
def test_a_platform_is_listed_conforms_and_answers(
    beside: Installed, plugin: Path, platform: str, tmp_path: Path, demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = beside(plugin)
    rows = {row["name"]: row for row in json.loads(run(environment.core, "platforms", "--json", cwd=tmp_path))}
    assert rows[platform]["state"] == "AVAILABLE"
    assert rows[platform]["distribution"] == "{name} {version}".format(**project(plugin))
    run(environment.core, "conformance", platform, "--level", "serve", cwd=tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    options = ("--platform", platform, "--max-model-len", "256", "--kv-cache-memory", "32MiB")
    with real_server(demo_model, *options, command=str(environment.core)) as server:
        status, _, answer = server.complete("The capital of France is", max_tokens=4, temperature=0)
        assert status == 200 and "Paris" in answer["choices"][0]["text"]


def test_uninstalled_a_plugin_is_gone_without_a_trace(tree: Path, tmp_path: Path) -> None:
    environment = CleanEnvironment(tmp_path)
    environment.install(packages.wheel(tree))

    def state() -> tuple[set[Path], str, str]:
        shown = run(environment.core, "platforms", "--json", cwd=tmp_path)
        others = run(environment.core, "plugins", "--json", cwd=tmp_path)
        return environment.files(), shown, others

    before = state()
    for plugin in PLUGINS:
        (tmp_path / plugin.name).mkdir()
        environment.install(packages.wheel(packages.build(plugin, tmp_path / plugin.name)))
    assert state() != before
    for plugin in PLUGINS:
        environment.uninstall(project(plugin)["name"])
    assert state() == before
