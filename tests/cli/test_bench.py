"""`core bench`: its figures, its load, and each kind once on something small."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.bench import load
from core.bench.figures import percentile, spread
from core.cli import bench
from core.cli.main import Parser, main
from core.cli.options import count, engine_options, served_by


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_no_values_have_no_spread() -> None:
    assert spread("ttft", []) == {}
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_figures_of_known_samples() -> None:
    good = load.Sample(start=1.0, end=3.0, arrivals=[1.5, 2.0, 2.5], prompt_tokens=10, output_tokens=3)
    bad = load.Sample(start=1.0, end=1.1, error="HTTP 500")
    figures = load.figures([good, bad], wall=2.0)
    assert (figures["requests"], figures["errors"], figures["first_error"]) == (2, 1, "HTTP 500")
    assert (figures["output_tokens_per_s"], figures["total_tokens_per_s"]) == (1.5, 6.5)
    assert (figures["ttft_p50"], figures["tpot_p99"], figures["itl_mean"], figures["e2e_p90"]) == (0.5, 0.5, 0.5, 2.0)


def test_prompts_share_their_beginning_and_repeat_by_seed() -> None:
    workload = load.Workload(requests=5, input_words=4, output_tokens=1, shared_prefix_words=6, seed=7)
    texts = [text.split() for text in load.prompts(workload)]
    assert load.prompts(workload) == [" ".join(words) for words in texts]
    assert all(len(words) == 10 and words[:6] == texts[0][:6] for words in texts)
    assert len({tuple(words[6:]) for words in texts}) == 5


@pytest.mark.parametrize("loop", [["--concurrency", "3"], ["--rate", "500"]])
def test_serve(server: Any, loop: list[str], tmp_path: Path) -> None:
    saved = tmp_path / "figures.json"
    arguments = ["--url", server.url, "--requests", "7", "--input-words", "5", "--output-tokens", "4", *loop]
    assert main(["bench", "serve", *arguments, "--json", str(saved), "--label", "here"]) == 0
    figures = json.loads(saved.read_text())
    assert (figures["bench"], figures["label"], figures["requests"], figures["errors"]) == ("serve", "here", 7, 0)
    assert figures["output_tokens"] == 28 and figures["input_tokens"] > 7 * 5
    assert figures["url"] == server.url and figures["output_tokens_each"] == 4 and "CPUs" in figures["machine"]
    assert figures["ttft_p50"] <= figures["e2e_p50"] and figures["itl_p50"] <= figures["itl_p99"]
    assert len(server.engine.requests) == 7 + 2


def test_serve_reports_failures(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", server.url, "--requests", "2", "--input-words", "5", "--output-tokens", "4"]
    assert main(["bench", "serve", *arguments, "--served-model", "other"]) == 1
    assert "HTTP 404" in capsys.readouterr().out


def test_arguments_reach_the_server_that_it_starts() -> None:
    given = [
        "m", "--max-num-seqs", "4", "--no-enable-prefix-caching", "--platform-opt", "cpu.a=1", "--platform-opt", "cpu.b=2",
    ]  # fmt: skip
    parser = Parser()
    bench.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["bench", "startup", *given])
    arguments = served_by(parsed.model, engine_options(parsed))
    again = parser.parse_args(["bench", "startup", *arguments])
    assert (again.model, engine_options(again)) == ("m", engine_options(parsed))
    assert engine_options(again).max_num_seqs == 4 and not engine_options(again).enable_prefix_caching


def test_a_server_that_does_not_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "startup", str(tmp_path / "nothing"), "--runs", "1"]) == 1
    assert "ended with status 1 before it was ready" in capfd.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1"])
def test_counts_are_positive(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="less than 1"):
        count(value)


def test_latency_and_throughput(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    saved = tmp_path / "figures.json"
    common = [str(tiny_model("llama")), "--input-tokens", "8", "--output-tokens", "4", "--json", str(saved)]
    assert main(["bench", "latency", *common, "--batch-size", "2", "--runs", "3", "--warmup", "1"]) == 0
    assert main(["bench", "throughput", *common, "--requests", "5"]) == 0
    latency, throughput = map(json.loads, saved.read_text().splitlines())
    assert 0 < latency["latency_p50"] <= latency["latency_p99"]
    assert (throughput["input_tokens"], throughput["output_tokens"]) == (40, 20)


@pytest.mark.slow
def test_serve_and_startup_with_a_server_of_their_own(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    saved, model = tmp_path / "figures.json", str(tiny_model("llama"))
    common = [model, "--kv-cache-memory", "16MiB", "--json", str(saved)]
    assert main(["bench", "serve", *common, "--requests", "4", "--input-words", "4", "--output-tokens", "4"]) == 0
    assert main(["bench", "startup", *common, "--runs", "1"]) == 0
    served, started = map(json.loads, saved.read_text().splitlines())
    assert served["output_tokens"] == 16
    assert 0 < started["ready_p50"] < started["first_token_p50"]
