"""Servers that are light: the whole of `core serve`, on a simulated device of a known pace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sim_engine import write_profile

#: Seconds that a step takes at least.
STEP_S = 0.03


@pytest.fixture(scope="session")
def sim_arguments(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What `core serve` takes to serve a model without weights, a token in `STEP_S`."""
    directory = tmp_path_factory.mktemp("simulated")
    model = shutil.copytree(tiny_model("llama"), directory / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    profile = write_profile(directory / "slow.json", host_step_s=STEP_S)
    template = directory / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    options = ("--load-format", "dummy", "--served-model-name", "sim", "--platform", "sim")
    return (str(model), *options, "--chat-template", str(template), "--platform-opt", f"sim.profile={profile}")
