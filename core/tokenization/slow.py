"""Models published without a `tokenizer.json`: transformers converts their slow tokenizer. The only use of it here."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from core.errors import TokenizerError


def convert_slow(directory: Path) -> tokenizers.Tokenizer:
    """The fast tokenizer that transformers makes of the files in `directory`. Runs no code of the model's.

    Raises `TokenizerError` where transformers is not installed or cannot convert.
    """
    advice = "put a tokenizer.json into the directory, or name another with --tokenizer"
    try:
        from transformers import AutoTokenizer  # imports torch: seconds
    except ImportError as error:
        raise TokenizerError(f"{directory}: no tokenizer.json, and transformers is not installed; {advice}") from error
    try:
        converted = AutoTokenizer.from_pretrained(
            str(directory), use_fast=True, local_files_only=True, trust_remote_code=False
        )
        backend = converted.backend_tokenizer
    except Exception as error:  # what a conversion may raise has no common root
        raise TokenizerError(
            f"{directory}: no tokenizer.json, and transformers cannot convert: {error}; {advice}"
        ) from error
    if not isinstance(backend, tokenizers.Tokenizer):
        raise TokenizerError(f"{directory}: no tokenizer.json, and transformers knows no fast form of it; {advice}")
    return backend
