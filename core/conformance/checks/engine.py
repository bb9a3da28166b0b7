"""Level serve: the whole engine in this process, on tiny random models, token by token."""

from __future__ import annotations

from collections.abc import Sequence

from core.conformance.checkpoints import families, prompts
from core.conformance.failures import expect, expect_none
from core.conformance.oracle import Oracle
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.llm import LLM, RequestOutput
from core.types import EngineRequest, SamplingParams

TOKENS = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
#: Steps in which everything that a check asks for must have ended: a multiple of its tokens.
_MANY_STEPS = 2000


def complaints(subject: Subject, oracle: Oracle, outputs: Sequence[RequestOutput], what: str) -> list[str]:
    """What is wrong with greedy answers by the oracle."""
    found = []
    for output in outputs:
        choice = output.outputs[0]
        wrong = oracle.wrong_greedy(output.prompt_token_ids, choice.token_ids, subject.dtype)
        if not wrong and len(choice.token_ids) != TOKENS:
            wrong = f"{len(choice.token_ids)} tokens came, {TOKENS} were asked for ({choice.finish_reason})"
        if wrong:
            found.append(f"{what}, prompt of {len(output.prompt_token_ids)} tokens: {wrong}")
    return found


def oracle_of(subject: Subject, llm: LLM, family: str = "llama") -> Oracle:
    """The reference of the model that an engine runs."""
    return Oracle(llm.engine.config, subject.checkpoint(family).tensors)


@check("floor.serve", "serve", "a platform is there to serve models; one that claims nothing passes all else")
def floor(subject: Subject) -> None:
    """A tiny Llama is planned, loaded and run, and its greedy tokens are the right ones."""
    with subject.llm() as llm:
        outputs = llm.generate([prompts(2, 12)[1]], GREEDY)
        expect_none(complaints(subject, oracle_of(subject, llm), outputs, "llama"))


@check("engine.golden", "serve", "each architecture joins the ops otherwise")
def golden(subject: Subject) -> None:
    """Greedy tokens of every architecture, several prompts at once, are those of the float32 reference."""
    for family in families():
        with subject.llm(family) as llm:
            outputs = llm.generate(prompts(6), GREEDY)
            expect_none(complaints(subject, oracle_of(subject, llm, family), outputs, family))


@check("engine.types", "serve", "`auto` picks one of the declared types by the weights, and users pick any")
def types(subject: Subject) -> None:
    """The tiny Llama in every declared type, its KV in the same."""
    declared = subject.capabilities
    for dtype in declared.dtypes:
        if dtype not in declared.kv_dtypes:
            continue
        with subject.llm(dtype=str(dtype), kv_cache_dtype=str(dtype)) as llm:
            oracle, wrong = oracle_of(subject, llm), []
            for output in llm.generate(prompts(4), GREEDY):
                complaint = oracle.wrong_greedy(output.prompt_token_ids, output.outputs[0].token_ids, dtype)
                wrong += [f"llama in {dtype}: {complaint}"] if complaint else []
            expect_none(wrong)


@check(
    "engine.full_cache", "serve", "on a busy day the cache is full; a server that dies of it takes all streams along"
)
def full_cache(subject: Subject) -> None:
    """More requests than blocks: all are answered rightly, by preemption, and every block is free in the end."""
    with subject.llm(max_model_len=64, max_num_seqs=8, kv_cache_memory=kv_memory(subject, 12)) as llm:
        outputs = llm.generate(prompts(16), GREEDY)
        expect_none(complaints(subject, oracle_of(subject, llm), outputs, "16 requests in a cache for 3"))
        stats = llm.engine.stats()
        expect(stats.preemptions, "the cache was never full: --kv-cache-memory is not kept")
        expect(stats.kv_usage == 0, f"{stats.kv_usage:.0%} of the cache is in use when nothing runs")


def kv_memory(subject: Subject, blocks: int, family: str = "llama") -> str:
    """--kv-cache-memory for that many blocks of a tiny model."""

    def block_bytes() -> int:
        subject.release()
        executor = subject.platform.create_executor(subject.planned(family))
        try:
            return executor.plan_memory().kv_block_bytes
        finally:
            executor.shutdown()
            subject.release()

    return str(blocks * subject.kept(f"block_bytes.{family}", block_bytes))


@check("engine.abort", "serve", "clients leave all the time; what they leave must not run on, nor touch others")
def abort(subject: Subject) -> None:
    """A request that is aborted between and within steps is silent, its blocks are free, the others go on."""
    with subject.llm(max_num_seqs=4) as llm:
        engine, asked = llm.engine, prompts(4)
        tokens: dict[str, list[int]] = {f"request {index}": [] for index in range(4)}
        for name, prompt in zip(tokens, asked, strict=True):
            engine.add(EngineRequest(request_id=name, prompt_token_ids=prompt, params=_seeded(GREEDY)))
        for turn in range(_MANY_STEPS):
            if not engine.has_work():
                break
            gone = {"request 1"} if turn >= 3 else set()
            if turn == 3:
                engine.abort("request 1")
            for delta in engine.step():
                expect(delta.request_id not in gone, "a request gives tokens after it was aborted")
                tokens[delta.request_id] += delta.token_ids
        expect(not engine.has_work(), f"after {_MANY_STEPS} steps there is still work of {TOKENS} tokens")
        oracle = oracle_of(subject, llm)
        for index in (0, 2, 3):
            wrong = oracle.wrong_greedy(asked[index], tokens[f"request {index}"], subject.dtype)
            expect(not wrong, f"beside an aborted request: {wrong}")
        expect(engine.stats().kv_usage == 0, "an aborted request keeps blocks")
        expect_none(complaints(subject, oracle, llm.generate([asked[1]], GREEDY), "after an aborted request"))


def _seeded(params: SamplingParams) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=params.max_tokens, ignore_eos=True, seed=0)


@check("engine.fork", "serve", "n > 1 shares a prompt's blocks and copies the last")
def fork(subject: Subject) -> None:
    """n greedy choices of one prompt are all the right answer."""
    with subject.llm() as llm:
        oracle = oracle_of(subject, llm)
        for output in llm.generate(
            prompts(4), SamplingParams(temperature=0.0, max_tokens=TOKENS, n=3, ignore_eos=True)
        ):
            for choice in output.outputs:
                wrong = oracle.wrong_greedy(output.prompt_token_ids, choice.token_ids, subject.dtype)
                expect(not wrong, f"choice {choice.index} of 3, prompt of {len(output.prompt_token_ids)}: {wrong}")


@check("engine.deterministic", "serve", "what is declared is what users build their tests and audits on")
def deterministic(subject: Subject) -> None:
    """Two engines give the same tokens for the same requests, and the same logprobs bit by bit where there are any."""
    subject.require(subject.capabilities.deterministic, "capabilities().deterministic")
    asked = prompts(6, seed=11)
    runs = []
    for _ in range(2):
        with subject.llm() as llm:
            runs.append(llm.generate(asked, with_logprobs(subject)))
    expect_none(differences(runs[0], runs[1], "the same requests a second time"))


def with_logprobs(subject: Subject) -> SamplingParams:
    """Greedy, with logprobs where the platform has them: they tell rounding that tokens hide."""
    logprobs = 5 if "logprobs" in subject.capabilities.sampling else None
    return SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=logprobs)


def differences(wanted: Sequence[RequestOutput], got: Sequence[RequestOutput], what: str) -> list[str]:
    """Where answers differ, in a token or in a bit of a logprob."""
    found = []
    for one, other in zip(wanted, got, strict=True):
        left, right = one.outputs[0], other.outputs[0]
        if left.token_ids != right.token_ids:
            at = next(
                i for i, pair in enumerate(zip(left.token_ids, right.token_ids, strict=False)) if pair[0] != pair[1]
            )
            found.append(f"{what}: prompt of {len(one.prompt_token_ids)} tokens, token {at} is another")
        elif left.logprobs != right.logprobs:
            found.append(f"{what}: prompt of {len(one.prompt_token_ids)} tokens, logprobs differ in their bits")
    return found
