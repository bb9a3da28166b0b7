"""The memory plan that is told before a weight is read, held against the bytes that then go through the memory backend."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from core import plugins
from core.cli.main import main
from core.config import parse_options, resolve
from core.platform import Platform

pytestmark = pytest.mark.slow

OPTIONS = {"dtype": "bfloat16", "max_model_len": 2048, "kv_cache_memory": "512MiB", "platform": "cpu"}


@pytest.fixture
def platform() -> Iterator[Platform]:
    made = plugins.create(plugins.choose(parse_options(OPTIONS)))
    yield made
    made.close()


def test_the_plan_is_what_is_allocated(demo_model: str, platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["plan", demo_model, *flags, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)

    executor = platform.create_executor(platform.plan(resolve(demo_model, parse_options(OPTIONS))))
    try:
        executor.load(lambda stage, fraction: None)
        executor.allocate_kv(planned["kv_blocks"])
        executor.warmup(lambda stage, fraction: None)
        held = dict(platform.memory().in_use())
    finally:
        executor.shutdown()
    found = {
        "weights": held["weights"],
        "kv_cache": held["kv"],
        "activations": held["activations"],
        "inputs": held["inputs"],
    }
    assert sum(held.values()) == sum(found.values())
    for part, size in {**found, "total": sum(found.values())}.items():
        assert planned[part] == pytest.approx(size, rel=0.1), part
    assert not any(platform.memory().in_use().values())
