"""`core simulate` from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sim_engine import LLAMA3_70B, write_model, write_profile

from core.cli.main import main


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("small")))


def simulate(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict:
    assert main(["simulate", *arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_trace_as_json(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.jsonl"
    lines = [
        {"arrival": i / 10, "prompt_tokens": 30 + i, "output_tokens": 5, "prefix": 1, "prefix_tokens": 20}
        for i in range(8)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    found = simulate(capsys, "--model", small, "--profile", "mi300x", "--trace", str(trace), "--max-num-seqs", "4")
    assert found["device"] == "simulates AMD Instinct MI300X 192 GB"
    assert (found["requests"], found["rejected"], found["output_tokens"]) == (8, 0, 40)
    assert found["input_tokens"] == sum(30 + i for i in range(8)) and found["prefix_hit_percent"] > 0
    assert 0 < found["ttft_p50"] <= found["ttft_p99"] <= found["e2e_p99"] < found["simulated_s"]
    assert 0 < found["device_busy_percent"] <= 100 and 0 < found["kv_use_peak_percent"] <= 100


def test_a_real_model_over_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More devices serve the same load with less latency; the smaller device needs more of them."""
    model = str(write_model(tmp_path / "llama", LLAMA3_70B))
    load = ("--model", model, "--num-requests", "40", "--request-rate", "20", "--output-len", "20")
    eight, four = (simulate(capsys, *load, "--tp", n) for n in ("8", "4"))
    assert (eight["devices"], four["devices"]) == (8, 4)
    assert eight["tpot_p50"] < four["tpot_p50"] and eight["ttft_p50"] < four["ttft_p50"]
    assert main(["simulate", *load, "--tp", "8", "--profile", "tpu-v5e"]) == 1
    assert "--tensor-parallel-size above 8" in capsys.readouterr().err


def test_a_table(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--model", small, "--num-requests", "5", "--input-len", "20", "--output-len", "3"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("NVIDIA H100", "ttft_p99", "output_tokens_per_s", "kv_use_mean_percent"))


def test_devices_for_an_objective(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = str(write_profile(tmp_path / "slow.json", host_step_s=1.0))
    load = ("--model", small, "--profile", profile, "--num-requests", "6", "--output-len", "1", "--input-len", "10")
    one_by_one = (*load, "--max-num-seqs", "1", "--slo-ttft-ms")
    found = simulate(capsys, *one_by_one, "2100")
    assert found["slo_met"] and (found["replicas"], found["devices"]) == (3, 3) and found["ttft_p99"] <= 2.1
    assert not simulate(capsys, *one_by_one, "900", status=1)["slo_met"]


def test_the_queue_takes_all_unless_it_is_told_otherwise(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--model", small, "--num-requests", "4200", "--input-len", "2", "--output-len", "1")
    assert simulate(capsys, *load)["rejected"] == 0
    limited = simulate(capsys, *load, "--max-queued-requests", "10")
    assert limited["rejected"] == 4190 and limited["output_tokens"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "h10"), "did you mean 'h100'"),
        (("--trace", "t.jsonl", "--input-len", "5"), "--input-len: .*leave one of them out"),
        (("--trace", "nothing.jsonl"), "cannot read"),
        (("--platform", "cpu", "--profile", "h100"), "cpu"),
        (("--num-requests", "0"), "less than 1"),
        (("--slo-ttft-ms", "nan"), "not a number above 0"),
        (("--tp", "3", "--input-len", "9"), "cannot be split over 3"),
        (("--input-len", "500"), "--input-len: 500 and --output-len 128"),
    ],
)
def test_what_cannot_be_simulated(
    small: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--model", small, *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
