"""Text to tokens and back: tokenizers, chat templates, incremental detokenizing. Imports neither torch nor transformers."""

from __future__ import annotations

from core.tokenization.chat import ChatTemplate
from core.tokenization.detokenizer import IncrementalDetokenizer
from core.tokenization.gguf import tokenizer_from_gguf
from core.tokenization.huggingface import load_tokenizer
from core.tokenization.infill import infill_prompt
from core.tokenization.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "IncrementalDetokenizer",
    "Tokenizer",
    "infill_prompt",
    "load_tokenizer",
    "tokenizer_from_gguf",
]
