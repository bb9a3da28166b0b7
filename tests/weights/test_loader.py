"""Parameters are filled with the right rows, whole or by slice; what does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.defaults import TorchMemory
from core.errors import WeightError
from core.layers import Builder, Linear, RMSNorm
from core.platform import MemoryInfo
from core.program import OpProgram
from core.types import DType
from core.weights import loader
from core.weights.base import TensorMeta, WeightReader
from core.weights.loader import as_torch, dummy_parameters, load_parameters, unused_tensors


class DictReader(WeightReader):
    """A checkpoint in memory."""

    path = Path("checkpoint")

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def tensors(self) -> Mapping[str, TensorMeta]:
        return {k: TensorMeta(k, a.shape, DType.FLOAT32, a.nbytes) for k, a in self._arrays.items()}

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self._arrays[name] if rows is None else self._arrays[name][rows]

    def stored(self, name: str) -> Any:
        return self._arrays[name].view(np.uint8)

    def release(self, name: str) -> None:
        del name

    def close(self) -> None:
        pass


ARRAYS = {
    "a.weight": np.arange(32, dtype=np.float32).reshape(4, 8),
    "b.weight": np.arange(100, 116, dtype=np.float32).reshape(2, 8),
    "a.bias": np.arange(4, dtype=np.float32),
    "b.bias": np.arange(10, 12, dtype=np.float32),
}


def memory() -> TorchMemory:
    return TorchMemory("cpu", lambda: MemoryInfo(1 << 30, 1 << 30))


def load(linear: type, rank: int, world: int, shard_dim: int | None, **arrays: np.ndarray) -> list[torch.Tensor]:
    builder = Builder(OpProgram(), DType.FLOAT32, rank, world)
    linear(builder, "ab", [("a", 4), ("b", 2)], 8, bias=True, shard_dim=shard_dim)
    handles = load_parameters(builder.parameters, DictReader({**ARRAYS, **arrays}), memory(), lambda *_: None)
    return [handles[parameter.value.index] for parameter in builder.parameters]


def test_stacked_tensors_fill_their_rows() -> None:
    weight, bias = load(Linear, 0, 1, 0)
    assert weight.tolist() == [*ARRAYS["a.weight"].tolist(), *ARRAYS["b.weight"].tolist()]
    assert bias.tolist() == [0, 1, 2, 3, 10, 11]


def test_each_rank_holds_its_rows_of_each_part() -> None:
    weight, bias = load(Linear, 1, 2, 0)
    assert weight.tolist() == [*ARRAYS["a.weight"][2:].tolist(), *ARRAYS["b.weight"][1:].tolist()]
    assert bias.tolist() == [2, 3, 11]


def test_or_its_columns() -> None:
    weight, bias = load(Linear, 1, 2, 1)
    assert weight.tolist() == [*ARRAYS["a.weight"][:, 4:].tolist(), *ARRAYS["b.weight"][:, 4:].tolist()]
    assert bias.tolist() == [0, 1, 2, 3, 10, 11]


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(WeightError, match=r"'b\.weight'.*shape \[3, 8\], the model needs \[2, 8\]"):
        load(Linear, 0, 1, None, **{"b.weight": np.zeros((3, 8), np.float32)})


def test_a_missing_tensor_names_the_nearest() -> None:
    builder = Builder(OpProgram(), DType.FLOAT32)
    RMSNorm(builder, "model.norms", 4, 1e-5)
    reader = DictReader({"model.norm.weight": np.ones(4, np.float32)})
    with pytest.raises(WeightError, match=r"'model\.norms\.weight'.*nearest is 'model\.norm\.weight'"):
        load_parameters(builder.parameters, reader, memory(), lambda *_: None)


def test_unused_tensors_are_found() -> None:
    builder = Builder(OpProgram(), DType.FLOAT32)
    Linear(builder, "a", [("a", 4)], 8)
    assert unused_tensors(builder.parameters, ARRAYS) == ["a.bias", "b.bias", "b.weight"]


def test_bfloat16_bits() -> None:
    numbers = torch.randn(3, 5).bfloat16()
    bits = numbers.view(torch.int16).numpy().view(np.uint16)
    bits.flags.writeable = False
    assert torch.equal(as_torch(bits, DType.BFLOAT16), numbers)


def test_dummy_weights_depend_on_seed_and_name_only() -> None:
    def weights(seed: int) -> torch.Tensor:
        builder = Builder(OpProgram(), DType.FLOAT32)
        Linear(builder, "a", [("a", 64)], 64)
        (handle,) = dummy_parameters(builder.parameters, memory(), lambda *_: None, seed=seed).values()
        return handle

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert weights(1).std().item() == pytest.approx(0.02, rel=0.1)


def test_large_dummy_weights_repeat_numbers_but_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> torch.Tensor:
        builder = Builder(OpProgram(), DType.FLOAT32)
        Linear(builder, "a", [("a", 96)], 64)
        (handle,) = dummy_parameters(builder.parameters, memory(), lambda *_: None, seed=1).values()
        return handle

    monkeypatch.setattr(loader, "_DRAWN", 1009)
    whole = weights()
    assert torch.equal(whole.flatten()[1009:2018], whole.flatten()[:1009])
    assert len(whole.unique(dim=0)) == 96
    monkeypatch.setattr(loader, "_CHUNK", 1)
    assert torch.equal(weights(), whole)
