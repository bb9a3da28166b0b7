"""What the checks are made of: the reference they hold platforms against, and the ways to say no."""

from __future__ import annotations

import threading
import time

import pytest
import torch
import transformers

from core import ops
from core.config import parse_options, resolve
from core.conformance import bounds, checkpoints, limits, registry
from core.conformance.cases import CASES, Numbers, magnitudes
from core.conformance.failures import Broken, NotClaimed, expect, expect_none
from core.conformance.limits import Stage, within
from core.conformance.oracle import Oracle
from core.conformance.server import alive
from core.conformance.subject import Subject
from core.models.registry import architectures
from core.platform import Bucket
from core.types import SAMPLING_FEATURES, DType

# --- the reference -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", checkpoints.families())
def test_the_oracle_says_what_transformers_says(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = checkpoints.write(family, tmp_path_factory.mktemp(family))
    architecture, _ = checkpoints.families()[family]
    model = getattr(transformers, architecture).from_pretrained(made.path, dtype="float32").eval()
    oracle = Oracle(resolve(str(made.path), parse_options({"dtype": "float32"})), made.tensors)
    for prompt in checkpoints.prompts(4, 60):
        with torch.no_grad():
            wanted = model(torch.tensor([prompt])).logits[0]
        found = oracle.logits(prompt)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < bounds.LOGITS[DType.FLOAT32]


def test_the_oracle_refuses_another_token(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = checkpoints.write("llama", tmp_path_factory.mktemp("llama"))
    oracle = Oracle(resolve(str(made.path), parse_options({"dtype": "float32"})), made.tensors)
    prompt, output = [5, 6, 7], list[int]()
    for _ in range(5):
        output.append(int(oracle.logits([*prompt, *output])[-1].argmax()))
    assert oracle.wrong_greedy(prompt, output, DType.FLOAT32) == ""
    output[2] = (output[2] + 1) % checkpoints.VOCAB
    assert oracle.wrong_greedy(prompt, output, DType.FLOAT32).startswith("token 2 of the answer")
    assert oracle.wrong_greedy(prompt, [], DType.FLOAT32)


def test_every_architecture_of_the_core_has_a_family() -> None:
    assert {name for name, _ in checkpoints.families().values()} == set(architectures({}))


def test_a_text_tells_its_tokens() -> None:
    assert checkpoints.token_ids("a</s> ~<unk>!") == [
        3 + checkpoints.CHARACTERS.index("a"), 2, 3, checkpoints.VOCAB - 1, 0, 4,
    ]  # fmt: skip


# --- cases and bounds ----------------------------------------------------------------------------------------


def test_every_op_has_cases_a_bound_and_a_reason() -> None:
    named = set(ops.REFERENCE) - ops.ATTENTION_OPS
    assert set(CASES) == named
    checks = {check.name for check in registry.all_checks()}
    assert {f"kernels.{op}" for op in named} <= checks
    assert {f"sampling.{feature}" for feature in SAMPLING_FEATURES} <= checks
    for op in named:
        assert bounds.bound(op, DType.FLOAT32, 64) <= bounds.bound(op, DType.BFLOAT16, 64)


@pytest.mark.parametrize("op", CASES)
def test_the_reference_keeps_its_own_bound_in_every_type(op: str) -> None:
    """Computed in double precision it stays far within the float32 bound: the bound is not made of thin air."""
    for case in CASES[op](Numbers(op), Bucket(5, 3)):
        inputs = [None if given is None else given.data for given in case.inputs]
        outputs = [torch.empty(shape) for shape, _ in case.outputs]
        exact = [torch.empty(shape, dtype=torch.float64) for shape, _ in case.outputs]
        ops.REFERENCE[op](*inputs, *outputs, **case.attrs)
        doubles = [None if i is None else i.double() if i.is_floating_point() else i for i in inputs]
        if op not in ("rms_norm", "add_rms_norm", "rope", "rope_angles"):  # these compute in float32 by definition
            ops.REFERENCE[op](*doubles, *exact, **case.attrs)
            for got, want, size in zip(outputs, exact, magnitudes(op, inputs, case.attrs, outputs), strict=True):
                limit = bounds.bound(op, DType.FLOAT32, case.terms)
                assert bounds.deviation(got, want.float(), size, DType.FLOAT32) <= limit


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1.1])
def test_a_deviation_sees_what_is_not_a_number(bad: float) -> None:
    wanted = torch.tensor([1.0, 2.0, 3.0])
    got = torch.tensor([bad, 2.0, 3.0])
    assert bounds.deviation(got, wanted, wanted.abs(), DType.FLOAT32) > 0.05
    assert bounds.deviation(wanted, got, wanted.abs(), DType.FLOAT32) > 0.05
    assert bounds.deviation(got, got, got.abs(), DType.FLOAT32) == 0.0


# --- saying no -----------------------------------------------------------------------------------------------


def test_one_line_says_the_first_and_how_many() -> None:
    expect(True, "fine")
    expect_none([])
    with pytest.raises(Broken, match=r"^a \(and 2 more\)$"):
        expect_none(["a", "b", "c"])


def test_what_hangs_is_named() -> None:
    leave = threading.Event()

    def hang(stage: Stage) -> None:
        stage("collect()")
        leave.wait()

    with pytest.raises(Broken, match=r"^collect\(\) did not end in 0.05 s$"):
        within(hang, 0.05)
    leave.set()
    assert within(lambda stage: 7) == 7
    with pytest.raises(KeyError):
        within(lambda stage: {}["a"])
    assert limits.PATIENCE_S > 60


def _check(function: object) -> registry.Check:
    return registry.Check("test.check", "boot", "it is a test", function)  # type: ignore[arg-type]


def test_a_result_tells_what_became_of_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> None:
        raise Broken("linear is\nwrong")

    def unclaimed(subject: Subject) -> None:
        raise NotClaimed("no buckets")

    def unforeseen(subject: Subject) -> None:
        raise ZeroDivisionError("by zero")

    with Subject("cpu") as subject:
        assert registry.run(_check(lambda subject: None), subject).outcome == "passed"
        found = registry.run(_check(broken), subject)
        assert (found.outcome, found.reason, found.trace) == ("failed", "linear is wrong", "")
        assert registry.run(_check(unclaimed), subject).outcome == "unclaimed"
        found = registry.run(_check(unforeseen), subject)
        assert found.outcome == "failed" and "ZeroDivisionError" in found.reason and "test_parts.py" in found.reason
        assert "by zero" in found.trace
        monkeypatch.setattr(registry, "CHECK_S", 0.05)
        found = registry.run(_check(lambda subject: time.sleep(1)), subject)
        assert found.reason == "test.check did not end in 0.05 s"
        after = registry.run(_check(lambda subject: None), subject)
        assert (after.outcome, after.reason) == ("failed", "not run, as test.check hangs")


def test_without_a_platform_only_the_first_check_says_so() -> None:
    first, second, *_ = registry.all_checks()
    with Subject("no-such-platform") as subject:
        assert "no distribution provides" in registry.run(first, subject).reason
        assert registry.run(second, subject).reason == "not run, as plugin.loads failed"


def test_a_process_that_is_gone_is_not_alive() -> None:
    assert alive(1) and not alive(2**22 + 1)
