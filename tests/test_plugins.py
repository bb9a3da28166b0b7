"""Plugins are installed for these tests as anyone's are: a distribution on sys.path with an entry point."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import distributions
import pytest

from core import plugins
from core.cli import platforms as command
from core.config import parse_options
from core.errors import (
    ApiVersionError,
    ConfigError,
    PlatformBroken,
    PlatformNotFound,
    PluginLoadError,
    Unsupported,
)
from core.platform import API_VERSION, ChosenPlatform
from core.plugins import loading

TEST_PLATFORMS = Path(__file__).parent / "platforms"

PLUGIN = """
from core.hookspecs import hookimpl
from core.platform import PluginInfo, ProbeResult

@hookimpl
def plugin_info():
    return PluginInfo(name={name!r}, vendor="acme", version="1.0", api={api}, **{info})

@hookimpl
def probe(env):
    {probe}

@hookimpl
def create_platform(ctx):
    {create}
"""

OWN_OPTIONS = """
import msgspec
class Own(msgspec.Struct):
    a: int = 0
    b: str = ""
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count()

    def add(name: str, *, dist: str | None = None, body: str | None = None, **parts: Any) -> None:
        module = f"plugin_{tmp_path.name}_{next(numbers)}".replace("-", "_")
        dist = dist or f"acme-{name}"
        source = body if body is not None else plugin_source(name, **parts)
        distributions.install(tmp_path, dist, {"core.platforms": {name: module}}, {module: source})
        monkeypatch.syspath_prepend(str(tmp_path))  # again: drops what importlib remembers of the directory

    return add


def plugin_source(
    name: str,
    *,
    state: str = "AVAILABLE",
    score: int = 50,
    api: tuple[int, int] = API_VERSION,
    probe: str = "",
    create: str = "raise NotImplementedError",
    **info: Any,
) -> str:
    probe = probe or f"return ProbeResult(state={state!r}, reason='because', score={score})"
    indent = "\n    "
    return PLUGIN.format(
        name=name, api=api, info=info, probe=indent.join(probe.split("\n")), create=indent.join(create.split("\n"))
    )


def choose(**options: Any) -> ChosenPlatform:
    return plugins.choose(parse_options(options))


def found(name: str) -> plugins.FoundPlugin:
    (plugin,) = plugins.discover(name)
    return plugin


# --- loading -------------------------------------------------------------------------------------------------


def test_the_cpu_platform_comes_in_through_the_entry_points() -> None:
    plugin = found("cpu").loaded()
    assert plugin.info.name == "cpu"
    assert plugin.distribution.startswith("core ")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import no_such_module", ["cannot be loaded", "no_such_module", "uninstall"]),
        ("raise SystemExit(3)", ["cannot be loaded", "SystemExit: 3"]),
        ("1 +", ["cannot be loaded", "SyntaxError"]),
        ("", ["implements no plugin_info and no probe and no create_platform"]),
        (plugin_source("x").replace("def probe(env)", "def probe(env, more)"), ["cannot be loaded", "more"]),
        (plugin_source("x").replace("def probe", "def prob"), ["cannot be loaded", "prob"]),
        (plugin_source("other"), ["calls it 'other'", "same name"]),
        (plugin_source("x").replace("return PluginInfo", "return dict"), ["core.platform.PluginInfo is due"]),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_its_own_error(install: Install, body: str, words: list[str]) -> None:
    install("x", body=body)
    install("fine")
    by_name = {plugin.name: plugin for plugin in plugins.discover()}
    assert by_name["fine"].error is None and by_name["cpu"].error is None
    with pytest.raises(PluginLoadError) as caught:
        by_name["x"].loaded()
    for word in ["acme-x 1.0", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("api", "remedy"),
    [
        ((API_VERSION[0], API_VERSION[1] + 1), "upgrade core"),
        ((API_VERSION[0] + 1, 0), "upgrade core"),
        ((API_VERSION[0] - 1, 9), "upgrade the plugin"),
    ],
)
def test_another_version_of_the_contract_is_refused(install: Install, api: tuple[int, int], remedy: str) -> None:
    install("x", api=api)
    with pytest.raises(ApiVersionError, match=remedy) as caught:
        choose(platform="x")
    assert f"{api[0]}.{api[1]}" in str(caught.value)
    assert "{}.{}".format(*API_VERSION) in str(caught.value)


def test_an_older_minor_version_loads(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "API_VERSION", (3, 5))
    install("x", api=(3, 4))
    assert found("x").error is None


def test_two_distributions_with_one_name_are_both_named(install: Install) -> None:
    install("x", dist="acme-one")
    install("x", dist="acme-two")
    with pytest.raises(PluginLoadError, match=r"acme-one 1\.0 and acme-two 1\.0"):
        choose(platform="x")
    with pytest.raises(PlatformBroken, match="acme-one"):
        choose()


def test_a_named_platform_loads_no_other_plugin(install: Install, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    install("other", body=f"open({str(marker)!r}, 'w')")
    install("x")
    assert choose(platform="x").name == "x"
    assert not marker.exists()


# --- probing -------------------------------------------------------------------------------------------------


def test_a_probe_that_hangs_is_broken(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("x", probe="import threading\nthreading.Event().wait()")
    monkeypatch.setenv("CORE_PROBE_TIMEOUT", "0.05")
    candidate = plugins.probe(found("x"), {})
    assert candidate.state == "BROKEN"
    assert "no answer in 0.05 s" in candidate.result.reason and "(acme-x 1.0)" in candidate.result.reason
    stuck = [thread for thread in threading.enumerate() if thread.name == "probe-x"]
    assert stuck and all(thread.daemon for thread in stuck)


def test_a_probe_that_raises_is_broken_with_its_cause(install: Install) -> None:
    install("x", probe="raise OSError('no /dev/acme0')")
    with pytest.raises(PlatformBroken, match="OSError: no /dev/acme0") as caught:
        choose(platform="x")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_probe_that_answers_nonsense_is_broken(install: Install) -> None:
    install("x", probe="return 'yes'")
    assert "'yes' where core.platform.ProbeResult is due" in plugins.probe(found("x"), {}).result.reason


def test_a_probe_gets_its_own_options_only(install: Install) -> None:
    probe = "return ProbeResult(state='AVAILABLE', reason=repr(dict(env.options)), score=200)"
    install("x", body=OWN_OPTIONS + plugin_source("x", probe=probe, options="OPTIONS").replace("'OPTIONS'", "Own"))
    chosen = choose(platform_opt=("x.a=1", "cpu.threads=1", "x.b=c=d"))
    assert chosen == ChosenPlatform("x", {"a": "1", "b": "c=d"}, "{'a': '1', 'b': 'c=d'}")


# --- choosing ------------------------------------------------------------------------------------------------


def test_the_highest_score_among_the_available_is_chosen(install: Install) -> None:
    install("low", score=50)
    install("high", score=60)
    install("absent", score=90, state="ABSENT")
    assert choose() == ChosenPlatform("high", {}, "because")


def test_a_tie_names_the_candidates(install: Install) -> None:
    install("one", score=70)
    install("two", score=70)
    with pytest.raises(PlatformNotFound, match=r"one \(acme-one 1\.0\), two \(acme-two 1\.0\).*--platform"):
        choose()
    assert choose(platform="two").name == "two"


def test_a_broken_platform_is_fatal_unless_fallback_is_allowed(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("x", state="BROKEN")
    with pytest.raises(PlatformBroken, match=r"'x' should work.*because.*--allow-platform-fallback"):
        choose()
    with caplog.at_level("WARNING", "core"):
        assert choose(allow_platform_fallback=True).name == "cpu"
    assert "'x' should work" in caplog.text


def test_a_plugin_that_cannot_be_loaded_is_fatal_with_its_cause(install: Install) -> None:
    install("x", body="import no_such_module")
    with pytest.raises(PlatformBroken) as caught:
        choose()
    assert isinstance(caught.value.__cause__, PluginLoadError)
    assert isinstance(caught.value.__cause__.__cause__, ModuleNotFoundError)
    assert choose(allow_platform_fallback=True).name == "cpu"


def test_an_experimental_platform_is_chosen_only_by_name(install: Install) -> None:
    install("x", score=99, experimental=True)
    install("y", state="BROKEN", experimental=True)
    assert choose().name == "cpu"
    assert choose(platform="x").name == "x"


def test_an_available_plugin_replaces_those_it_names(install: Install) -> None:
    install("old", state="BROKEN")
    install("new", score=10, replaces=("old", "cpu"))
    assert choose().name == "new"
    assert choose(platform="cpu").name == "cpu"


def test_an_absent_plugin_replaces_nothing(install: Install) -> None:
    install("new", state="ABSENT", replaces=("cpu",))
    assert choose().name == "cpu"


def test_plugins_that_replace_each_other_compete(install: Install) -> None:
    install("one", score=70, replaces=("two",))
    install("two", score=71, replaces=("one",))
    assert choose().name == "two"


def test_no_usable_platform_says_why_for_each(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("x", state="ABSENT")
    only = [entry for entry in entry_points(group="core.platforms") if entry.name == "x"]
    monkeypatch.setattr(loading, "entry_points", lambda group: only)
    with pytest.raises(PlatformNotFound, match="x is ABSENT: because"):
        choose()
    only.clear()
    with pytest.raises(PlatformNotFound, match="no plugin is installed"):
        choose()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"platform": "cpux"}, PlatformNotFound, "did you mean 'cpu'"),
        ({"platform": "x"}, PlatformNotFound, "it cannot run here: because"),
        ({"platform_opt": ("cpux.threads=1",)}, ConfigError, "no platform 'cpux' is installed; did you mean 'cpu'"),
        ({"platform_opt": ("cpu.treads=1",)}, ConfigError, "cpu.treads.*did you mean 'threads'"),
        ({"platform_opt": ("cpu.threads=two",)}, ConfigError, "cpu.threads: 'two' will not do"),
        ({"platform_opt": ("threads=2",)}, ConfigError, "NAME.KEY=VALUE"),
    ],
)
def test_what_cannot_be_chosen_says_so(
    install: Install, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    install("x", state="ABSENT")
    with pytest.raises(error, match=words):
        choose(**options)


# --- creating ------------------------------------------------------------------------------------------------


def test_create_makes_the_chosen_platform() -> None:
    platform = plugins.create(ChosenPlatform("cpu", {"threads": "1"}))
    assert platform.devices()[0].memory_bytes > 0
    platform.close()


def test_create_translates_foreign_errors_only(install: Install) -> None:
    install("foreign", create="raise OSError('no context')")
    install("ours", create="from core.errors import Unsupported\nraise Unsupported('x', 'y')")
    install("nonsense", create="return 7")
    install("partial", create="from core.platform import Platform\nreturn type('P', (Platform,), {})()")
    with pytest.raises(PlatformBroken, match=r"acme-foreign 1\.0.*OSError: no context") as caught:
        plugins.create(ChosenPlatform("foreign"))
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(Unsupported):
        plugins.create(ChosenPlatform("ours"))
    with pytest.raises(PluginLoadError, match=r"7 where core\.platform\.Platform is due"):
        plugins.create(ChosenPlatform("nonsense"))
    with pytest.raises(PlatformBroken, match="abstract"):
        plugins.create(ChosenPlatform("partial"))
    with pytest.raises(PlatformNotFound, match="no longer installed"):
        plugins.create(ChosenPlatform("gone"))


# --- across processes ----------------------------------------------------------------------------------------


def in_a_new_process(code: str, *path: Path) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_choosing_imports_neither_torch_nor_numpy() -> None:
    out = in_a_new_process(
        """
        import sys
        from core.config import Options
        from core.plugins import choose
        print(choose(Options()).name, [name for name in ("torch", "numpy", "transformers") if name in sys.modules])
        """
    )
    assert out.split("\n")[0] == "cpu []"


def test_the_test_platforms_are_installed_by_a_path() -> None:
    out = in_a_new_process(
        """
        from core.config import Options
        from core.plugins import choose, create
        for name in ("static", "fakegraph"):
            print(type(create(choose(Options(platform=name)))).__name__)
        print(choose(Options()).name)
        """,
        TEST_PLATFORMS,
    )
    assert out.split() == ["StaticPlatform", "FakeGraphPlatform", "cpu"]


# --- the command ---------------------------------------------------------------------------------------------


def platforms(*flags: str) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["platforms", *flags]))


def test_core_platforms_prints_state_and_reason(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("x", probe="raise OSError('no /dev/acme0')")
    assert platforms("-v") == 0
    out = capsys.readouterr().out
    for word in ("cpu", "AVAILABLE", "BROKEN", "acme-x 1.0", "caused by OSError: no /dev/acme0"):
        assert word in out


def test_core_platforms_prints_json(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("x", body="import no_such_module")
    assert platforms("--json") == 0
    by_name = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert by_name["cpu"]["state"] == "AVAILABLE" and by_name["cpu"]["devices"][0]["memory_bytes"] > 0
    assert by_name["x"]["state"] == "BROKEN"
    assert [cause.partition(":")[0] for cause in by_name["x"]["causes"]] == ["PluginLoadError", "ModuleNotFoundError"]
