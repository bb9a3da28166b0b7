"""What a platform does not declare is refused before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import LLM
from core.errors import PlatformNotFound, Unsupported


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "--dtype bfloat16 is not supported"),
        ({"kv_cache_dtype": "bfloat16"}, "--kv-cache-dtype bfloat16 is not supported"),
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size 2"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
    ],
)
def test_undeclared_features_are_refused(
    tiny_model: Callable[[str], Path], test_platforms: None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unsupported, match=message):
        LLM(str(tiny_model("llama")), platform="static", progress=False, **options)


def test_an_unknown_platform_names_those_that_are_there(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(PlatformNotFound, match="cpu"):
        LLM(str(tiny_model("llama")), platform="cuda", progress=False)
