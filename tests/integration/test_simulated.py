"""`core serve` on simulated hardware: the whole stack over HTTP, at the pace of a device that is not here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from real_server import RealServer, events, real_server
from sim_engine import write_profile

pytestmark = pytest.mark.slow

STEP_S = 0.02


@pytest.fixture(scope="module")
def server(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Of a model without weights, on a device whose steps take at least `STEP_S`."""
    directory = tmp_path_factory.mktemp("simulated")
    model = shutil.copytree(tiny_model("llama"), directory / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    profile = write_profile(directory / "slow.json", host_step_s=STEP_S)
    options = ("--load-format", "dummy", "--platform", "sim", "--platform-opt", f"sim.profile={profile}")
    with real_server(str(model), *options) as started:
        yield started


def test_it_answers_with_as_many_tokens_as_asked_for(server: RealServer) -> None:
    status, _, answer = server.complete("Hello", max_tokens=7)
    assert status == 200 and answer["usage"]["completion_tokens"] == 7
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_same_seed_gives_the_same_answer_and_so_does_greedy(server: RealServer) -> None:
    def text(prompt: str, **fields: float) -> str:
        return server.complete(prompt, max_tokens=40, **fields)[2]["choices"][0]["text"]

    assert text("Hello", seed=5) == text("World", seed=5) != text("Hello", seed=6)
    assert text("Hello", temperature=0) == text("Hello", temperature=0) != text("World", temperature=0)


def test_steps_take_their_time_and_are_shared(server: RealServer) -> None:
    """32 streams of 20 tokens take 20 steps, not 640, each as long as the device's."""

    def stream(number: int) -> tuple[int, float]:
        began = time.monotonic()
        body = {"prompt": f"Hello {number}", "max_tokens": 20, "stream_options": {"include_usage": True}}
        connection, response = server.stream("/v1/completions", body)
        usage = [event["usage"] for event in events(response) if event.get("usage")][-1]
        connection.close()
        return usage["completion_tokens"], time.monotonic() - began

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(stream, range(32)))
    assert [tokens for tokens, _ in results] == [20] * 32
    assert all(20 * STEP_S <= seconds < 32 * 20 * STEP_S for _, seconds in results)


def test_what_takes_no_effect_is_refused(server: RealServer) -> None:
    status, _, answer = server.complete("Hello", max_tokens=2, logprobs=3)
    assert status == 400 and "logprobs" in answer["error"]["message"]
