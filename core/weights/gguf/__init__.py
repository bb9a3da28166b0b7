"""GGUF, llama.cpp's file format: header, tokenizer metadata and quantised tensors in one file."""

from __future__ import annotations

from core.weights.gguf.header import read_gguf_metadata
from core.weights.gguf.reader import GGUFReader

__all__ = ["GGUFReader", "read_gguf_metadata"]
