"""Every instruction-set tier of this processor, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from platforms._shared import _native


@pytest.fixture(params=_native.available_isas())
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native kernels in this tier; it and the number of threads are put back."""
    before, threads = _native.isa(), _native.num_threads()
    torch.manual_seed(0)
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)
    _native.set_num_threads(threads)
