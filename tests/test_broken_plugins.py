"""What a broken plugin does to the commands that people run: a clear message, soon, and the rest works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import distributions
import pytest

CORE = str(Path(sys.executable).with_name("core"))

PLUGIN = """
from core.hookspecs import hookimpl
from core.platform import PluginInfo, ProbeResult
{top}

@hookimpl
def plugin_info():
    return PluginInfo(name="acme", vendor="acme", version="1.0", api={api})

@hookimpl
def probe(env):
    {probe}

@hookimpl
def create_platform(ctx):
    {create}
"""

AVAILABLE = "return ProbeResult(state='AVAILABLE', reason='one Acme 9', score={score})"

#: A hang is longer than any of these commands may take.
HANG = "import time; time.sleep(30)"


def source(*, top: str = "", api: str = "(1, 0)", probe: str = "", create: str = "raise OSError('no context')") -> str:
    return PLUGIN.format(top=top, api=api, probe=probe or AVAILABLE.format(score=50), create=create)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """A command with `site` on its path: exit status, standard output, standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "TMPDIR": str(tmp_path)}
        started = time.monotonic()
        done = subprocess.run(
            [CORE, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        print(f"{time.monotonic() - started:.1f} s: core {' '.join(arguments)}\n{done.stderr}")
        return done.returncode, done.stdout, done.stderr

    return command


def add(site: Path, body: str, dist: str = "acme-core", name: str = "acme") -> None:
    module = f"{dist.replace('-', '_')}_{name}"
    distributions.install(site, dist, {"core.platforms": {name: module}}, {module: body})


#: Fault -> (the plugin, what `core platforms` says of it, how to repair it).
BROKEN = {
    "import error": (source(top="import no_such_module"), "No module named 'no_such_module'", "repair or uninstall"),
    "wrong major": (source(api="(2, 0)"), "written for version 2.0", "upgrade core"),
    "older major": (source(api="(0, 9)"), "written for version 0.9", "upgrade the plugin"),
    "torch at its top": (source(top="import torch"), "imports torch at its top", "import it inside create_platform"),
    "torch, if it can": (
        source(top="try:\n    import torch\nexcept ImportError:\n    torch = None"),
        "imports torch at its top",
        "import it inside create_platform",
    ),
    "probe raising": (source(probe="raise OSError('no /dev/acme0')"), "OSError: no /dev/acme0", "acme-core 1.0"),
    "probe hanging": (source(probe=HANG), "gave no answer in 3 s", "CORE_PROBE_TIMEOUT"),
    "exit at import": (source(top="raise SystemExit(3)"), "SystemExit: 3", "repair or uninstall"),
    "no hooks": ("", "implements no plugin_info", "core.hookspecs.hookimpl"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_the_platforms_command_names_plugin_and_cause_and_shows_the_rest(site: Path, run: Run, fault: str) -> None:
    body, cause, remedy = BROKEN[fault]
    add(site, body)
    status, out, _ = run("platforms", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0 and rows["cpu"]["state"] == "AVAILABLE"
    assert rows["acme"]["state"] == "BROKEN"
    for word in ("acme-core 1.0", cause, remedy):
        assert word in rows["acme"]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_serving_stops_with_the_cause(site: Path, run: Run, fault: str, tiny_model: Callable[[str], Path]) -> None:
    body, cause, _ = BROKEN[fault]
    add(site, body)
    model = str(tiny_model("llama"))
    for arguments in (("serve", model, "--port", "0"), ("serve", model, "--port", "0", "--platform", "acme")):
        status, _, err = run(*arguments)
        assert status == 1
        for word in ("acme-core 1.0", cause):
            assert word in err
        assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["import error", "probe hanging"])
def test_a_platform_that_is_fine_can_be_named_or_stand_in(
    site: Path, run: Run, fault: str, tiny_model: Callable[[str], Path]
) -> None:
    body, cause, _ = BROKEN[fault]
    add(site, body)
    model = str(tiny_model("llama"))
    status, _, err = run("plan", model, "--platform", "cpu")
    assert status == 0 and "acme" not in err
    status, _, err = run("plan", model, "--allow-platform-fallback")
    assert status == 0 and cause in err


@pytest.mark.slow
def test_a_name_that_two_distributions_give(site: Path, run: Run) -> None:
    add(site, source())
    add(site, source(), dist="other-core")
    _, out, _ = run("platforms", "--json")
    reason = {row["name"]: row["reason"] for row in json.loads(out)}["acme"]
    assert "acme-core 1.0 and other-core 1.0" in reason and "uninstall all but one" in reason


@pytest.mark.slow
def test_two_platforms_that_are_equally_good(site: Path, run: Run, tiny_model: Callable[[str], Path]) -> None:
    add(site, source())
    add(site, source().replace('name="acme"', 'name="acme2"'), dist="other-core", name="acme2")
    status, _, err = run("serve", str(tiny_model("llama")), "--port", "0")
    assert status == 1
    assert "acme (acme-core 1.0), acme2 (other-core 1.0) are equally good" in err and "--platform" in err


@pytest.mark.slow
def test_a_platform_that_cannot_be_made(site: Path, run: Run, tiny_model: Callable[[str], Path]) -> None:
    add(site, source())
    status, _, err = run("serve", str(tiny_model("llama")), "--port", "0")
    assert status == 1
    assert "plugin 'acme' of acme-core 1.0 could not make its platform: OSError: no context" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("where", ["import", "probe"])
def test_a_plugin_that_prints_does_not_spoil_the_output(site: Path, run: Run, where: str) -> None:
    top = "print('hello from acme')" if where == "import" else ""
    probe = "" if where == "import" else f"print('hello from acme'); {AVAILABLE.format(score=50)}"
    add(site, source(top=top, probe=probe))
    status, out, err = run("platforms", "--json")
    assert status == 0 and {row["name"]: row["state"] for row in json.loads(out)}["acme"] == "AVAILABLE"
    assert "acme-core 1.0 prints" in err and "hello from acme" in err


@pytest.mark.slow
def test_an_extension_that_is_broken_stops_the_start_unless_it_is_left_out(
    site: Path, run: Run, tiny_model: Callable[[str], Path]
) -> None:
    distributions.install(site, "acme-tools", {"core.plugins": {"tools": "tools"}}, {"tools": "import no_such_module"})
    model = str(tiny_model("llama"))
    status, _, err = run("plan", model)
    assert status == 1
    for word in ("plugin 'tools' of acme-tools 1.0", "no_such_module", "uninstall"):
        assert word in err
    assert run("plan", model, "--plugins", "none")[0] == 0
    status, out, _ = run("plugins", "--json")
    assert status == 1
    (row,) = json.loads(out)
    assert row["state"] == "BROKEN" and "no_such_module" in row["reason"]
