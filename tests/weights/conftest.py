"""Small models in both formats, made here: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

WriteGGUF = Callable[..., Path]

_LLAMA = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        add[type(value)](key, value)


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGGUF:
    """Writes a GGUF file with the `gguf` package: metadata of a tiny llama with `metadata` over it (None removes).

    A tensor is an array, or a pair of stored bytes and the name of their ggml type.
    """

    def write(
        tensors: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        arch: str = "llama",
        name: str = "tiny.gguf",
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, arch)
        merged = {f"{arch}.{key}": value for key, value in _LLAMA.items()} | dict(metadata or {})
        for key, value in merged.items():
            if value is not None:
                _add(writer, key, value)
        given = {"token_embd.weight": np.ones((96, 32), np.float32)} if tensors is None else tensors
        for tensor, data in given.items():
            array, kind = data if isinstance(data, tuple) else (data, None)
            writer.add_tensor(tensor, array, raw_dtype=gguf.GGMLQuantizationType[kind] if kind else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
