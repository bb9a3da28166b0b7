"""Level ops: kernels that choose tokens, where the platform has its own, against the core's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from core.conformance.failures import NotClaimed, expect
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.logits import Choices, Floats, Ints, LogitsKernels, ReferenceLogits

_ROWS, _TOKENS = 5, 24
_SIZES = (1, 33, 1000, 32003)
_WHAT_IS_NO_NUMBER = (-np.inf, np.inf, np.nan)


def _kernels(subject: Subject) -> LogitsKernels:
    kernels = subject.platform.logits_kernels()
    if kernels is None:
        raise NotClaimed("the core's own are used")
    return kernels


def _logits() -> Iterator[tuple[str, Floats]]:
    """Rows that lie apart: spread out, of few different numbers, and with what is no number among them."""
    for size in _SIZES:
        generator = np.random.default_rng(size)
        whole = np.full((_ROWS, size + 3), np.nan, np.float32)
        x = whole[:, :size]
        x[:] = generator.standard_normal((_ROWS, size)) * 3
        yield f"{size} tokens", x
        x[:] = np.round(x)
        yield f"{size} tokens, many as likely as others", x
        for bad in _WHAT_IS_NO_NUMBER:
            x[generator.random(x.shape) < 0.4] = bad
            yield f"{size} tokens, some of them {bad}", x


def _choices(seed: int) -> Choices:
    """All kinds at once, each token with numbers of its own."""
    generator = np.random.default_rng(seed)
    return Choices(
        rows=generator.integers(0, _ROWS, _TOKENS).astype(np.int32),
        temperature=generator.choice([0.0, 1e-9, 0.3, 1.0, 5.0], _TOKENS),
        top_k=generator.choice(np.array([-1, 0, 1, 4, 50, 2**31 - 1], np.int32), _TOKENS),
        top_p=generator.choice([1e-9, 0.5, 0.9, 1.0], _TOKENS),
        min_p=generator.choice([0.0, 0.02, 1.0], _TOKENS),
        seed=generator.integers(-(2**63), 2**63 - 1, _TOKENS),
        choice=generator.integers(0, 128, _TOKENS),
        position=generator.integers(0, 2**20, _TOKENS),
    )


@check("logits.choose", "ops", "a draw is to be the same beside any neighbours, after a restart and on any server")
def choose(subject: Subject) -> None:
    """Tokens are the core's own choices: any filters, equal logits, -inf, NaN, other orders of the rows."""
    kernels, reference = _kernels(subject), ReferenceLogits()
    for seed, (what, x) in enumerate(_logits()):
        before, asked = x.tobytes(), _choices(seed)
        found, wanted = kernels.choose(x, asked), reference.choose(x, asked)
        for i in np.flatnonzero(found != wanted).tolist():
            expect(False, f"choose: {_told(asked, i)} of {what} gives {found[i]}, not {wanted[i]}")
        expect(x.tobytes() == before, f"choose: the logits of {what} were changed")


def _told(asked: Choices, i: int) -> str:
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "choice", "position")
    return ", ".join(f"{name} {getattr(asked, name)[i]}" for name in names)


@check("logits.logprobs", "ops", "evaluations read these numbers, and rank is where their words stand")
def logprobs(subject: Subject) -> None:
    """Log probabilities within 1e-6, alternatives in order with the first of equals first, and ranks."""
    kernels, reference = _kernels(subject), ReferenceLogits()
    for what, x in _logits():
        rows, tokens = np.arange(_ROWS, dtype=np.int32)[::-1], np.arange(_ROWS) % x.shape[1]
        for count in (0, min(20, x.shape[1])):
            found, wanted = (each.logprobs(x, rows, tokens, count) for each in (kernels, reference))
            near = np.allclose(found[0], wanted[0], rtol=1e-6, atol=1e-6, equal_nan=True)
            expect(near, f"logprobs: of {what} they are not the softmax's")
            expect(
                _same(found[1], wanted[1]), f"logprobs: {count} alternatives of {what} are not the likeliest in order"
            )
            expect(_same(found[2], wanted[2]), f"logprobs: ranks in {what} are {found[2]}, not {wanted[2]}")


def _same(found: Ints, wanted: Ints) -> bool:
    return bool(np.array_equal(found, wanted))
