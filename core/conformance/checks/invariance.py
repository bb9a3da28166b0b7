"""Level serve: a request's answer whatever happens around it.

Where batch_invariant is declared, answers must be equal to the bits of their logprobs. Where it is not, rounding may
choose another of two tokens that are nearly equally likely (core.conformance.bounds.NEAR_TIE), and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.conformance.checkpoints import prompts
from core.conformance.checks.engine import complaints, differences, kv_memory, oracle_of, with_logprobs
from core.conformance.registry import check, expect, expect_none
from core.conformance.subject import Subject
from core.llm import LLM, RequestOutput

_COUNT = 8


def _asked() -> list[list[int]]:
    return prompts(_COUNT, 44, seed=21)


def _judge(
    subject: Subject, llm: LLM, wanted: Sequence[RequestOutput], got: Sequence[RequestOutput], what: str
) -> None:
    if subject.capabilities.batch_invariant:
        expect_none(differences(wanted, got, what))
    expect_none(complaints(subject, oracle_of(subject, llm), got, what))


def _alone(subject: Subject, llm: LLM) -> list[RequestOutput]:
    return [llm.generate([prompt], with_logprobs(subject))[0] for prompt in _asked()]


@check("invariance.batch", "serve", "users compare answers; they must not depend on who else was there")
def batch(subject: Subject) -> None:
    """Alone or among others."""
    with subject.llm(enable_prefix_caching=False) as llm:
        alone = _alone(subject, llm)
        _judge(subject, llm, alone, llm.generate(_asked(), with_logprobs(subject)), "among others, not alone")


@check("invariance.chunks", "serve", "a long prompt is computed in pieces when others are there")
def chunks(subject: Subject) -> None:
    """A prompt at once, or in chunks."""
    with subject.llm(enable_prefix_caching=False) as llm:
        whole = _alone(subject, llm)
    with subject.llm(enable_prefix_caching=False, max_num_batched_tokens=8, max_num_seqs=8) as llm:
        got = llm.generate(_asked(), with_logprobs(subject))
        _judge(subject, llm, whole, got, "prompts in chunks of up to 8, not at once")


@check("invariance.prefix", "serve", "the second user of a system prompt gets blocks that the first one computed")
def prefix(subject: Subject) -> None:
    """A prompt's blocks found, or computed."""
    with subject.llm(enable_prefix_caching=True) as llm:
        first = _alone(subject, llm)
        again = _alone(subject, llm)
        expect(any(output.num_cached_tokens for output in again), "no block was found again: nothing was tested")
        _judge(subject, llm, first, again, "with a prefix found in the cache")


@check("invariance.preemption", "serve", "a request that had to give way must come back as if it had not")
def preemption(subject: Subject) -> None:
    """Preempted and computed again, or not."""
    with subject.llm(enable_prefix_caching=False) as llm:
        alone = _alone(subject, llm)
    room = kv_memory(subject, 11)
    with subject.llm(enable_prefix_caching=False, max_model_len=80, kv_cache_memory=room) as llm:
        got = llm.generate(_asked(), with_logprobs(subject))
        expect(llm.engine.stats().preemptions, "nothing was preempted: nothing was tested")
        _judge(subject, llm, alone, got, "after preemption")
