"""The GPU kernels run here by Triton's interpreter, which is told so before any of their modules is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

PLATFORM = Path(__file__).parent / "platform"


@pytest.fixture(scope="session", autouse=True)
def _interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.syspath_prepend(str(PLATFORM))
        patch.syspath_prepend(str(PLATFORM.parent))
        import_module("interpreter_bfloat16").repair()
        yield
    assert "platforms._shared.triton.kernels.attention" in sys.modules, "no kernel was run"
