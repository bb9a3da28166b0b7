"""Tensors that lie in wider ones."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Random columns of a wider tensor, as Q of QKV; what lies beside them is NaN."""
    whole = torch.full((rows, columns + 5), torch.nan).to(dtype)
    view = whole[:, 3 : 3 + columns]
    view.copy_(torch.randn(rows, columns))
    return view
