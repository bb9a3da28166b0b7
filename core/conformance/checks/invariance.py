"""Level serve: a request's answer whatever happens around it.

Where batch_invariant is declared, answers must be equal to the bits of their logprobs. Where it is not, rounding may
choose another of two tokens that are nearly equally likely (core.conformance.bounds.NEAR_TIE), and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.conformance.checkpoints import families, prompts
from core.conformance.checks.engine import complaints, differences, kv_memory, oracle_of, with_logprobs
from core.conformance.failures import expect, expect_none
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.llm import LLM, RequestOutput

#: Prompts of the Llama, and of each other family.
_MANY, _FEW = 8, 3
_LLAMA = "llama"


def _asked(family: str) -> list[list[int]]:
    return prompts(_MANY if family == _LLAMA else _FEW, 44, seed=21)


def _judge(
    subject: Subject, llm: LLM, family: str, wanted: Sequence[RequestOutput], got: Sequence[RequestOutput], how: str
) -> None:
    what = f"{family}, {how}"
    if subject.capabilities.batch_invariant:
        expect_none(differences(wanted, got, what))
    expect_none(complaints(subject, oracle_of(subject, llm, family), got, what))


def _one_by_one(subject: Subject, llm: LLM, family: str) -> list[RequestOutput]:
    return [llm.generate([prompt], with_logprobs(subject))[0] for prompt in _asked(family)]


def _alone(subject: Subject, family: str) -> list[RequestOutput]:
    """Each prompt alone, at once, computed by itself: what all else is compared with."""

    def make() -> list[RequestOutput]:
        with subject.llm(family, enable_prefix_caching=False) as llm:
            return _one_by_one(subject, llm, family)

    return subject.kept(f"alone.{family}", make)


def _together(subject: Subject, llm: LLM, family: str) -> list[RequestOutput]:
    return llm.generate(_asked(family), with_logprobs(subject))


@check("invariance.batch", "serve", "users compare answers; they must not depend on who else was there")
def batch(subject: Subject) -> None:
    """Alone or among others, for every architecture."""
    for family in families():
        alone = _alone(subject, family)
        with subject.llm(family, enable_prefix_caching=False) as llm:
            _judge(subject, llm, family, alone, _together(subject, llm, family), "among others, not alone")


@check("invariance.chunks", "serve", "a long prompt is computed in pieces when others are there")
def chunks(subject: Subject) -> None:
    """A prompt at once, or in chunks, for every architecture."""
    for family in families():
        alone = _alone(subject, family)
        with subject.llm(family, enable_prefix_caching=False, max_num_batched_tokens=8, max_num_seqs=8) as llm:
            got = _together(subject, llm, family)
            _judge(subject, llm, family, alone, got, "prompts in chunks of up to 8, not at once")


@check("invariance.prefix", "serve", "the second user of a system prompt gets blocks that the first one computed")
def prefix(subject: Subject) -> None:
    """A prompt's blocks found, or computed, for every architecture."""
    for family in families():
        with subject.llm(family, enable_prefix_caching=True) as llm:
            first = _one_by_one(subject, llm, family)
            again = _one_by_one(subject, llm, family)
            found = any(output.num_cached_tokens for output in again)
            expect(found or family != _LLAMA, "no block was found again: nothing was tested")
            _judge(subject, llm, family, first, again, "with a prefix found in the cache")


@check("invariance.preemption", "serve", "a request that had to give way must come back as if it had not")
def preemption(subject: Subject) -> None:
    """Preempted and computed again, or not, for every architecture."""
    for family in families():
        alone = _alone(subject, family)
        room = kv_memory(subject, 11 if family == _LLAMA else 8, family)
        with subject.llm(family, enable_prefix_caching=False, max_model_len=80, kv_cache_memory=room) as llm:
            got = _together(subject, llm, family)
            # Windows leave other architectures more room than they need.
            happened = llm.engine.stats().preemptions or family != _LLAMA
            expect(happened, "nothing was preempted: nothing was tested")
            _judge(subject, llm, family, alone, got, "after preemption")
