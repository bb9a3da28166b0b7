"""The cost model: against figures counted by hand, and as the hardware gets better or the step larger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_engine import SIZES, configured, exact_profile, write_model

from core.errors import Unsupported
from core.platform import MemoryPlan
from core.program import OpCall
from core.recording import RecordedModel, record_model
from core.types import KVOp
from platforms.sim.cost import CostModel, _seen
from platforms.sim.profile import Profile, load_profile, shipped

# The small model: hidden size, MLP width, layers, query and KV widths, head size, vocabulary; bytes of an element.
H, M, LAYERS, Q, KV, D, V = 64, 112, 3, 64, 32, 16, 384
E = 2


def recorded(model: Path, **options: Any) -> RecordedModel:
    return record_model(configured(model, **options))


def seconds(model: RecordedModel, profile: Profile, *sequences: tuple[int, int], devices: int = 1) -> float:
    """Of a step of sequences (tokens computed, length then)."""
    counts, lengths = (np.array(column, np.int64) for column in zip(*sequences, strict=True))
    return CostModel(model, profile, devices).step_seconds(counts, lengths)


def flops_by_hand(tokens: int, seqs: int, pairs: int) -> int:
    products = 2 * tokens * (H * (Q + 2 * KV) + Q * H + H * 2 * M + M * H)
    norms = 5 * tokens * H * 2
    rotations = 3 * tokens * (Q + KV)
    layer = products + norms + rotations + 5 * tokens * M + 4 * pairs * Q
    # The first norm has nothing to add; the last one, and the head, are of the sequences' last tokens only.
    return LAYERS * layer - tokens * H + 2 * tokens * D + 5 * seqs * H + 2 * seqs * H * V


def bytes_by_hand(tokens: int, seqs: int, context: int) -> int:
    def product(rows: int, inputs: int, outputs: int, size: int = E) -> int:
        return E * (rows * inputs + inputs * outputs) + size * rows * outputs

    norm = E * (4 * tokens * H + H)  # x and the residual come in, norm and sum go out
    products = (
        product(tokens, H, Q + 2 * KV) + product(tokens, Q, H) + product(tokens, H, 2 * M) + product(tokens, M, H)
    )
    rotations = E * 2 * tokens * (Q + KV) + 2 * 4 * tokens * D
    cache = E * 2 * tokens * 2 * KV + 4 * tokens
    attention = E * (2 * tokens * Q + 2 * context * KV)
    layer = 2 * norm + products + rotations + cache + attention + E * 3 * tokens * M
    first = -E * 2 * tokens * H
    angles = 4 * tokens + 4 * D // 2 + 4 * tokens * D
    embedding = 4 * tokens + E * 2 * tokens * H
    selected = 2 * (4 * seqs + E * 2 * seqs * H)
    last = E * (4 * seqs * H + H) + product(seqs, H, V, 4)
    return LAYERS * layer + first + angles + embedding + selected + last


@pytest.mark.parametrize(
    ("sequences", "pairs"),
    [
        ([(1, 1)], 1),
        ([(1, 100)], 100),
        ([(4, 4)], 1 + 2 + 3 + 4),
        ([(3, 10)], 8 + 9 + 10),
        ([(1, 7), (2, 2), (5, 20)], 7 + 1 + 2 + 16 + 17 + 18 + 19 + 20),
    ],
)
def test_a_step_against_figures_counted_by_hand(small: Path, sequences: list[tuple[int, int]], pairs: int) -> None:
    model = recorded(small)
    tokens, seqs = sum(count for count, _ in sequences), len(sequences)
    arithmetic = seconds(model, exact_profile(peak_flops={"bfloat16": 1.0}), *sequences)
    assert arithmetic == pytest.approx(flops_by_hand(tokens, seqs, pairs), rel=1e-12)
    traffic = seconds(model, exact_profile(memory_bandwidth=1.0), *sequences)
    context = sum(length for _, length in sequences)
    assert traffic == pytest.approx(bytes_by_hand(tokens, seqs, context), rel=1e-12)


def test_launches_and_the_host(small: Path) -> None:
    model = recorded(small)
    ops = len(model.program.calls)
    assert seconds(model, exact_profile(launch_s=1.0), (1, 1)) == pytest.approx(ops)
    assert seconds(model, exact_profile(host_step_s=5.0, host_sequence_s=1.0), (1, 1), (3, 3)) == pytest.approx(7.0)


def test_all_reduces_follow_what_is_split_by_inputs(small: Path) -> None:
    model = recorded(small, tensor_parallel_size=2)
    # Attention's and the MLP's output of each layer; of 2 devices each sends as much as there is.
    sent = seconds(model, exact_profile(link_bandwidth=1.0), (10, 10), devices=2)
    assert sent == pytest.approx(LAYERS * 2 * 10 * H * E)
    assert seconds(model, exact_profile(link_latency_s=1.0), (1, 1), devices=2) == pytest.approx(LAYERS * 2)
    assert seconds(recorded(small), exact_profile(link_latency_s=1.0), (1, 1)) == pytest.approx(0)


def test_two_devices_compute_half_of_what_is_split(small: Path) -> None:
    profile = exact_profile(peak_flops={"bfloat16": 1.0})
    whole, half = recorded(small), recorded(small, tensor_parallel_size=2)
    products = 2 * (H * (Q + 2 * KV) + Q * H + H * 2 * M + M * H)
    rest = 3 * (Q + KV) + 5 * M + 4 * Q
    saved = seconds(whole, profile, (1, 1)) - seconds(half, profile, (1, 1), devices=2)
    assert saved == pytest.approx(LAYERS * (products + rest) / 2)


@pytest.mark.parametrize("name", shipped())
def test_more_devices_take_less_time(llama3_70b: Path, name: str) -> None:
    profile = load_profile(name)
    sizes = [n for n in (1, 2, 4, 8) if n <= profile.max_devices]
    models = [recorded(llama3_70b, tensor_parallel_size=n) for n in sizes]
    for step in ([(1, 1000)] * 32, [(2048, 2048)]):
        taken = [seconds(model, profile, *step, devices=n) for model, n in zip(models, sizes, strict=True)]
        assert taken == sorted(taken, reverse=True)


def test_a_window_is_all_that_is_read(tmp_path: Path) -> None:
    sizes = {**SIZES, "architectures": ["MistralForCausalLM"]}
    narrow = recorded(write_model(tmp_path / "narrow", sizes, sliding_window=24))
    wide = recorded(write_model(tmp_path / "wide", sizes))
    profile = exact_profile(memory_bandwidth=1.0)
    saved = seconds(wide, profile, (1, 100)) - seconds(narrow, profile, (1, 100))
    assert saved == pytest.approx(LAYERS * (100 - 24) * 2 * KV * E)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=5), st.integers(1, 50))
def test_what_is_seen_counted_one_by_one(sequences: list[tuple[int, int]], window: int) -> None:
    counts = np.array([count for count, _ in sequences])
    lengths = np.array([count + before for count, before in sequences])
    for span in (None, window):
        positions = [range(before, before + count) for count, before in sequences]
        seen = [[p + 1 if span is None else min(p + 1, span) for p in some] for some in positions]
        first = [0 if span is None else max(0, some[0] - span + 1) for some in positions]
        read = [some[-1] + 1 - start for some, start in zip(positions, first, strict=True)]
        assert _seen(counts, lengths, span) == (sum(map(sum, seen)), sum(read))


STEPS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 300)), min_size=1, max_size=6)
FIGURES = ["memory_bandwidth", "link_bandwidth"]
COSTS = ["launch_s", "link_latency_s", "host_step_s", "host_sequence_s"]


@pytest.fixture(scope="module")
def both(small: Path) -> tuple[RecordedModel, RecordedModel]:
    return recorded(small), recorded(small, tensor_parallel_size=2)


@given(step=STEPS, which=st.sampled_from([*FIGURES, *COSTS, "peak_flops"]), name=st.sampled_from(shipped()))
def test_better_hardware_is_never_slower(
    both: tuple[RecordedModel, RecordedModel], step: list[tuple[int, int]], which: str, name: str
) -> None:
    profile = load_profile(name)
    value = getattr(profile, which)
    better = (
        value / 2 if which in COSTS else {k: 2 * v for k, v in value.items()} if which == "peak_flops" else 2 * value
    )
    improved = msgspec.structs.replace(profile, **{which: better})
    sequences = [(count, count + before) for count, before in step]
    for devices, model in enumerate(both, 1):
        assert seconds(model, improved, *sequences, devices=devices) <= seconds(
            model, profile, *sequences, devices=devices
        )


@given(step=STEPS, more=st.tuples(st.integers(1, 100), st.integers(0, 300)), which=st.integers(0, 5))
def test_more_work_is_never_quicker(
    both: tuple[RecordedModel, RecordedModel], step: list[tuple[int, int]], more: tuple[int, int], which: int
) -> None:
    profile, model = load_profile("h100"), both[0]
    sequences = [(count, count + before) for count, before in step]
    taken = seconds(model, profile, *sequences)
    assert seconds(model, profile, *sequences, (more[0], sum(more))) >= taken
    index = which % len(sequences)
    count, length = sequences[index]
    longer = [*sequences[:index], (count, length + more[1]), *sequences[index + 1 :]]
    assert seconds(model, profile, *longer) >= taken


def test_copies_read_and_write_each_layers_part(small: Path) -> None:
    plan = MemoryPlan(weights=0, activations=0, inputs=0, kv_block_bytes=300, num_blocks=2, block_size=16, free=10**9)
    cost = CostModel(recorded(small), exact_profile(memory_bandwidth=1.0, launch_s=0.5), 1)
    assert cost.copy_seconds([KVOp("copy", 0, 1, 2)] * 2, plan) == pytest.approx(2 * (600 + LAYERS * 0.5))


def test_an_op_of_unknown_cost_is_refused(small: Path) -> None:
    model = recorded(small)
    model.program.calls.append(OpCall("fft", (), (), {}))
    with pytest.raises(Unsupported, match=r"op fft .*work\.py"):
        CostModel(model, load_profile("h100"), 1)
