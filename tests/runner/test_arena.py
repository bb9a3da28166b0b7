"""Activations share one buffer, but never while both are needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.platform import Bucket
from core.program import NUM_TOKENS, OpProgram, Storage, Value
from core.runner.arena import ALIGNMENT, plan_arena, value_bytes
from core.types import DType

LIMITS = Bucket(num_tokens=7, num_seqs=3)


@st.composite
def programs(draw: st.DrawFn) -> OpProgram:
    """Calls that read any earlier values, some of them through views, and write one or two new ones."""
    program = OpProgram()
    values: list[Value] = [program.new("x", (NUM_TOKENS, 8), DType.FLOAT32, Storage.INPUT)]
    for _ in range(draw(st.integers(1, 25))):
        inputs = [values[i] for i in draw(st.lists(st.integers(0, len(values) - 1), max_size=3))]
        if draw(st.booleans()):
            inputs = [program.view(value, "view", 0, 4) for value in inputs]
        widths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=2))
        values += program.call("op", tuple(inputs), tuple(((NUM_TOKENS, width), DType.BFLOAT16) for width in widths))
    return program


@given(programs())
def test_no_two_live_values_overlap(program: OpProgram) -> None:
    arena = plan_arena(program, LIMITS)
    made = {value.index: i for i, call in enumerate(program.calls) for value in call.outputs}
    last = dict(made)
    for i, call in enumerate(program.calls):
        for value in call.inputs:
            if value is not None and value.owner.index in last:
                last[value.owner.index] = i
    spans = [
        (arena.offsets[v.index], arena.offsets[v.index] + value_bytes(v, LIMITS), made[v.index], last[v.index])
        for v in program.of(Storage.ACTIVATION)
    ]
    for i, (start, end, born, dies) in enumerate(spans):
        assert start % ALIGNMENT == 0
        assert end <= arena.size
        for other_start, other_end, other_born, other_dies in spans[:i]:
            together = born <= other_dies and other_born <= dies
            assert not together or end <= other_start or other_end <= start


def test_memory_is_reused() -> None:
    program = OpProgram()
    value = program.new("x", (NUM_TOKENS, 16), DType.FLOAT32, Storage.INPUT)
    for _ in range(50):
        (value,) = program.call("op", (value,), (((NUM_TOKENS, 16), DType.FLOAT32),))
    assert plan_arena(program, LIMITS).size == 2 * value_bytes(value, LIMITS)


def test_outputs_are_not_in_the_arena() -> None:
    program = OpProgram()
    (value,) = program.call("op", (), (((NUM_TOKENS, 16), DType.FLOAT32),))
    kept = program.keep(value, "logits")
    assert plan_arena(program, LIMITS).size == 0
    assert program.named(Storage.OUTPUT) == {"logits": kept}
    assert program.calls[0].outputs == (kept,)
