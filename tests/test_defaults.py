from __future__ import annotations

import pytest
import torch

from core import ops
from core.defaults import ReferenceAttention, ReferenceKernels, TorchMemory
from core.errors import OutOfDeviceMemory, Unsupported
from core.platform import AttentionQuery, MemoryInfo
from core.types import DType

GIB = 1 << 30


def memory(free: int = GIB) -> TorchMemory:
    return TorchMemory("cpu", lambda: MemoryInfo(total=2 * GIB, free=free))


def test_memory_is_zeroed_counted_and_given_back() -> None:
    backend = memory()
    weight = backend.alloc((3, 5), DType.BFLOAT16, "weights")
    block = backend.alloc((2, 7), DType.FLOAT32, "kv")
    empty = backend.alloc((0, 7), DType.FLOAT32, "kv")
    assert weight.dtype is torch.bfloat16 and not weight.any()
    assert backend.in_use() == {"weights": 30, "kv": 56}
    assert backend.alloc_size((3, 5), DType.BFLOAT16) == 30
    for handle in (weight, block, empty):
        backend.free(handle)
    assert backend.in_use() == {}


def test_only_what_is_held_can_be_freed() -> None:
    backend = memory()
    handle = backend.alloc((2,), DType.INT32, "inputs")
    with pytest.raises(ValueError, match="not held"):
        backend.free(handle[:1])
    with pytest.raises(ValueError, match="not held"):
        backend.free(torch.zeros(2))
    backend.free(handle)
    with pytest.raises(ValueError, match="freed before"):
        backend.free(handle)


def test_out_of_memory_names_the_use_and_holds_nothing() -> None:
    backend = memory(free=20 << 20)
    with pytest.raises(OutOfDeviceMemory, match=r"kv: 33554432 bytes are wanted for \[8388608\] float32 and 20971520"):
        backend.alloc((8 << 20,), DType.FLOAT32, "kv")
    boundless = TorchMemory("cpu", lambda: MemoryInfo(1 << 62, 1 << 62))
    with pytest.raises(OutOfDeviceMemory, match="kv: "):
        boundless.alloc((1 << 58,), DType.FLOAT32, "kv")
    assert backend.in_use() == boundless.in_use() == {}


def test_upload_converts_into_rows_and_refuses_what_does_not_fit() -> None:
    backend = memory()
    handle = backend.alloc((4, 2), DType.BFLOAT16, "weights")
    backend.upload(handle, torch.tensor([[1.0, 2.0], [3.0, 4.00001]]), row=1)
    assert backend.download(handle).tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]
    for data, row in ((torch.zeros(2, 2), 3), (torch.zeros(1, 3), 0), (torch.zeros(5, 2), 0)):
        with pytest.raises(ValueError, match="does not fit"):
            backend.upload(handle, data, row=row)


def test_reference_kernels_cover_every_op_but_attentions() -> None:
    table = ReferenceKernels()
    assert {op for op in ops.REFERENCE if table.supports(op)} == set(ops.REFERENCE) - ops.ATTENTION_OPS
    assert table.get("linear") is ops.REFERENCE["linear"]
    with pytest.raises(Unsupported, match=r"op attention .*no kernel for 'attention'"):
        table.get("attention")


def test_faster_kernels_come_first() -> None:
    def silu_mul(*_: object) -> None: ...

    assert ReferenceKernels({"silu_mul": silu_mul}).get("silu_mul") is silu_mul


def query(heads: int, kv_heads: int) -> AttentionQuery:
    return AttentionQuery(8, heads, kv_heads, None, DType.FLOAT32, DType.BFLOAT16, block_size=4)


def test_reference_attention_lays_out_two_planes() -> None:
    backend = ReferenceAttention()
    layout = backend.kv_layout(query(6, 2))
    assert (layout.block_shape, layout.dtype, layout.planes) == ((2, 4, 8), DType.BFLOAT16, 2)
    assert backend.supports(query(6, 2))
    assert "6 heads cannot share 4 KV heads" in backend.supports(query(6, 4)).reason


def test_blocks_are_copied_in_order() -> None:
    planes = [torch.arange(4.0).view(4, 1, 1, 1).clone() + base for base in (0, 10)]
    ReferenceAttention().copy_blocks(planes, [(3, 1), (1, 2)])
    assert [plane.flatten().tolist() for plane in planes] == [[0, 3, 3, 3], [10, 13, 13, 13]]
