"""The paged attention against the reference, on ragged steps over stale blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.ops import REFERENCE
from core_openvino import attention
from core_openvino.attention import PagedAttention, cut

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 16, 4
Step = list[tuple[int, int]]  # (rows of this step, tokens before them) of each sequence

STEPS: dict[str, Step] = {
    "one token": [(1, 0)],
    "decode": [(1, 4), (1, 4), (1, 4)],
    "ragged decode": [(1, 17), (1, 0), (1, 3), (1, 40)],
    "prefill": [(13, 0)],
    "chunk": [(5, 11)],
    "mixed": [(1, 9), (7, 0), (1, 30), (0, 0), (6, 6), (1, 5)],
}


def tables(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Block table (blocks in no order), query starts and lengths."""
    rng = np.random.default_rng(0)
    lengths = np.array([rows + before for rows, before in step])
    widest = -(-int(lengths.max()) // BLOCK)
    table = 1 + rng.permutation(len(step) * widest).reshape(len(step), widest)
    starts = np.concatenate([[0], np.cumsum([rows for rows, _ in step])])
    return tuple(torch.from_numpy(array.astype(np.int32)) for array in (table, starts, lengths))  # type: ignore[return-value]


def run(step: Step, window: int | None, backend: Any, dtype: torch.dtype) -> Tensor:
    """Write every token, then attend; what was not written is NaN. `backend` is ours, or None for the reference."""
    torch.manual_seed(1)
    table, starts, lengths = tables(step)
    shape = (KV_HEADS, BLOCK, DIM) if backend is None else (BLOCK, KV_HEADS, DIM)
    cache = [torch.full((int(table.max()) + 1, *shape), float("nan"), dtype=dtype) for _ in range(2)]
    for index, length in enumerate(lengths.tolist()):
        positions = torch.arange(length)
        slots = (table[index, positions // BLOCK] * BLOCK + positions % BLOCK).int()
        key, value = torch.randn(2, length, KV_HEADS * DIM).to(dtype)
        (REFERENCE["kv_write"] if backend is None else backend.write_kv)(key, value, cache, slots)
    wide = torch.randn(int(starts[-1]), HEADS * DIM + 8).to(dtype)
    query, out = wide[:, 3 : HEADS * DIM + 3], torch.zeros(int(starts[-1]), HEADS * DIM, dtype=dtype)
    attrs = {"head_dim": DIM, "num_kv_heads": KV_HEADS, "scale": 0.3, "window": window}
    (REFERENCE["attention"] if backend is None else backend.forward)(query, cache, table, starts, lengths, out, **attrs)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("name", STEPS)
def test_equals_the_reference(name: str, window: int | None, dtype: torch.dtype) -> None:
    expected = run(STEPS[name], window, None, dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 2.0**-6
    torch.testing.assert_close(
        run(STEPS[name], window, PagedAttention(), dtype), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("window", [None, 6])
def test_the_size_of_the_pieces_changes_nothing_else(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(STEPS["mixed"], window, None, torch.float32)
    monkeypatch.setattr(attention, "_ROWS", 3)
    monkeypatch.setattr(attention, "_POSITIONS", 12)
    torch.testing.assert_close(
        run(STEPS["mixed"], window, PagedAttention(), torch.float32), expected, rtol=1e-5, atol=1e-5
    )


def test_pieces_are_bounded_and_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_ROWS", 4)
    monkeypatch.setattr(attention, "_POSITIONS", 64)
    rng = np.random.default_rng(3)
    for _ in range(50):
        step = [(int(rng.choice([0, 1, 1, 1, 9])), int(rng.integers(0, 30))) for _ in range(12)]
        pieces = list(cut(*tables(step), BLOCK, None, torch.float32))
        total = sum(rows for rows, _ in step)
        covered = torch.cat([torch.arange(total)[piece.rows] for piece in pieces]) if pieces else torch.arange(0)
        assert sorted(covered.tolist()) == list(range(total))
        for piece in pieces:
            assert len(piece.slots) <= 64
            assert len(torch.arange(total)[piece.rows]) <= 4 * piece.batch


def test_layers_share_the_pieces_of_one_step_and_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(attention, "cut", lambda *arguments: made.append(cut(*arguments)) or made[-1])
    backend, table = PagedAttention(), tables(STEPS["mixed"])
    for _ in range(2):
        with backend.step():
            first = backend._pieces(table, BLOCK, None, torch.float32)
            assert backend._pieces(table, BLOCK, None, torch.float32) is first
            assert backend._pieces(table, BLOCK, 6, torch.float32) is not first, "another group"
    assert len(made) == 4
    backend._pieces(table, BLOCK, None, torch.float32)
    assert len(made) == 5, "what is called op by op keeps nothing"
