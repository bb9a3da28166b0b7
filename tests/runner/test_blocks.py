"""Blocks that leave one cache and enter another: the same bits, in the right places, and told of when they are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from core.cache.connector import KVConnector
from core.defaults import ReferenceAttention, torch_dtype
from core.errors import Unsupported
from core.platform import AttentionBackend, AttentionQuery
from core.runner.blocks import BlockMover
from core.transfer import BlockTransfer
from core.transfer.lane import Lane
from core.types import NULL_BLOCK, DType, KVGroupSpec, KVOp
from platforms._shared.native.attention import NativeAttention

GROUPS = (KVGroupSpec((0, 2), num_kv_heads=2, head_dim=8), KVGroupSpec((1,), num_kv_heads=2, head_dim=8, window=5))
NUM_BLOCKS = 6

Caches = dict[int, tuple[torch.Tensor, ...]]


class Drawer(KVConnector):
    """Keeps blocks; both ends of a test look into the same one."""

    def __init__(self) -> None:
        self.kept: dict[tuple[bytes, int], bytes] = {}

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        raise NotImplementedError

    def save(self, block_hash: bytes, group: int, data: memoryview) -> None:
        assert data.readonly
        self.kept[block_hash, group] = bytes(data)

    def load(self, block_hash: bytes, group: int) -> bytes | None:
        return self.kept.get((block_hash, group))


class Device:
    """A cache with its mover and its transfer."""

    def __init__(self, backend: AttentionBackend, dtype: DType, drawer: Drawer, seed: int) -> None:
        layout = backend.kv_layout(AttentionQuery(8, 4, 2, None, DType.FLOAT32, dtype, block_size=4))
        generator = torch.Generator().manual_seed(seed)
        self.caches: Caches = {
            layer: tuple(
                torch.randn(NUM_BLOCKS, *layout.block_shape, generator=generator).to(torch_dtype(dtype))
                for _ in range(layout.planes)
            )
            for layer in range(3)
        }
        sizes = [layout.block_bytes * len(group.layers) for group in GROUPS]
        self.transfer = BlockTransfer(Lane("drawer", lambda: drawer), sizes)
        layer_bytes = dict.fromkeys(range(3), layout.block_bytes)
        self.mover = BlockMover(backend, GROUPS, self.caches, layer_bytes, self.transfer)

    def bits(self, layer: int, block: int) -> list[Any]:
        return [plane[block].contiguous().view(torch.uint8).tolist() for plane in self.caches[layer]]

    def copy(self) -> dict[tuple[int, int], list[Any]]:
        return {(layer, block): self.bits(layer, block) for layer in range(3) for block in range(NUM_BLOCKS)}


def key(number: int) -> bytes:
    return bytes([number]) * 32


def save(group: int, block: int, number: int) -> KVOp:
    return KVOp("save", group, block, NULL_BLOCK, key(number), "anyone")


def load(group: int, block: int, number: int, request_id: str = "one") -> KVOp:
    return KVOp("load", group, NULL_BLOCK, block, key(number), request_id)


def ended(mover: BlockMover) -> tuple[list[str], list[str]]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        loaded, failed = mover.take_in(wait=True)
        if loaded or failed:
            return loaded, failed
    raise AssertionError("no load has ended")


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("backend", [ReferenceAttention(), NativeAttention()], ids=["reference", "native"])
def test_what_was_exported_is_imported_bit_by_bit(backend: AttentionBackend, dtype: DType) -> None:
    drawer = Drawer()
    here, there = Device(backend, dtype, drawer, 1), Device(backend, dtype, drawer, 2)
    here.mover.move([save(0, 2, 1), save(0, 5, 2), save(1, 3, 1), save(1, 1, 2)])
    here.mover.close()
    assert here.mover.stats().saved == 4
    before = there.copy()
    there.mover.move([load(0, 4, 1), load(0, 1, 2), load(1, 5, 2)])
    assert ended(there.mover) == (["one"], [])
    there.mover.close()
    moved = {(0, 4): (0, 2), (2, 4): (2, 2), (0, 1): (0, 5), (2, 1): (2, 5), (1, 5): (1, 1)}
    assert there.copy() == {place: here.bits(*moved[place]) if place in moved else before[place] for place in before}


def test_nan_and_signed_zero_keep_their_bits() -> None:
    backend, drawer = ReferenceAttention(), Drawer()
    here, there = (Device(backend, DType.BFLOAT16, drawer, seed) for seed in (1, 2))
    for plane in here.caches[1]:
        plane[3].view(torch.int16).copy_(torch.arange(plane[3].numel()).view(plane[3].shape) * 1023 - 32768)
    here.mover.move([save(1, 3, 1)])
    here.mover.close()
    there.mover.move([load(1, 2, 1)])
    assert ended(there.mover) == (["one"], [])
    assert there.bits(1, 2) == here.bits(1, 3)
    there.mover.close()


def test_saves_take_what_lies_there_before_the_copies_that_follow() -> None:
    drawer = Drawer()
    device = Device(ReferenceAttention(), DType.FLOAT32, drawer, 1)
    first, second = device.bits(1, 1), device.bits(1, 2)
    device.mover.move([save(1, 1, 1), KVOp("copy", 1, 2, 1), save(1, 1, 2), KVOp("copy", 1, 1, 4)])
    device.mover.close()
    other = Device(ReferenceAttention(), DType.FLOAT32, drawer, 2)
    other.mover.move([load(1, 1, 1), load(1, 2, 2)])
    assert ended(other.mover) == (["one"], [])
    other.mover.close()
    assert (other.bits(1, 1), other.bits(1, 2)) == (first, second)
    assert device.bits(1, 4) == second


def test_each_request_ends_by_itself() -> None:
    drawer = Drawer()
    device = Device(ReferenceAttention(), DType.FLOAT32, drawer, 1)
    device.mover.move([save(0, 1, 1), save(1, 1, 1)])
    while device.mover.stats().saved < 2:
        time.sleep(0.01)
    device.mover.move([load(0, 2, 1, "found"), load(0, 3, 7, "lost"), load(1, 2, 1, "found")])
    loaded: list[str] = []
    failed: list[str] = []
    while len(loaded) + len(failed) < 2:
        more = ended(device.mover)
        loaded += more[0]
        failed += more[1]
    assert (loaded, failed) == (["found"], ["lost"])
    assert device.mover.take_in(wait=False) == ([], [])
    device.mover.close()


def test_without_a_connector_only_copies_can_be_made() -> None:
    device = Device(ReferenceAttention(), DType.FLOAT32, Drawer(), 1)
    mover = BlockMover(ReferenceAttention(), GROUPS, device.caches, {}, None)
    mover.move([KVOp("copy", 0, 1, 2)])
    assert device.bits(0, 2) == device.bits(0, 1) and device.bits(2, 2) == device.bits(2, 1)
    for operation in (save(0, 1, 1), load(0, 1, 1)):
        with pytest.raises(Unsupported, match="no KV connector is configured"):
            mover.move([operation])
    assert mover.take_in(wait=True) == ([], [])
    mover.close()
    device.mover.close()
