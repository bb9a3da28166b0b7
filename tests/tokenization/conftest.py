from __future__ import annotations

import sys
from pathlib import Path

import pytest

from core.tokenization import Tokenizer, load_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # for `vocabularies`

from vocabularies import demo_file


@pytest.fixture(scope="session")
def demo() -> Tokenizer:
    return load_tokenizer(str(demo_file()))
