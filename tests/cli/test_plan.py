"""`core plan`: the memory plan and the platform's decisions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.cli.main import main


def plan(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict:
    assert main(["plan", *arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_figures_agree(tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, str(tiny_model("llama")), "--kv-cache-memory", "8MiB", "--max-model-len", "100")
    parts = ("weights", "activations", "inputs", "kv_cache")
    assert found["total"] == sum(found[part] for part in parts) and all(found[part] > 0 for part in parts)
    assert found["kv_cache"] <= 8 << 20
    assert found["kv_tokens"] == (found["kv_blocks"] - 1) * found["kv_block_size"]
    blocks = -(-100 // found["kv_block_size"])
    assert found["longest_sequences"] == (found["kv_blocks"] - 1) // blocks


def test_table(tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_model("llama")), "--kv-cache-memory", "8MiB"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("LlamaForCausalLM", "weights", "KV cache", "blocks of", "free memory"))


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
