"""Level serve: every sampling feature that is declared takes effect; a request for any other is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from core.conformance import checkpoints
from core.conformance.bounds import LOGITS, NEAR_TIE
from core.conformance.checkpoints import prompts, token_ids
from core.conformance.checks.engine import oracle_of
from core.conformance.failures import Broken, NotClaimed, expect
from core.conformance.oracle import Oracle, first_wrong
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.errors import InvalidRequest
from core.llm import LLM, CompletionOutput, RequestOutput
from core.types import SAMPLING_FEATURES, SamplingParams, StructuredOutputs

_TOKENS = 24
_FAMILY = "llama"
#: A request that asks for each feature.
ASKING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.8},
    "seed": {"seed": 7},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.2},
    "presence_penalty": {"presence_penalty": 1.0},
    "frequency_penalty": {"frequency_penalty": 1.0},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "logit_bias": {"logit_bias": {5: 10.0}},
    "allowed_token_ids": {"allowed_token_ids": (5, 6)},
    "bad_words": {"bad_words": ("a",)},
    "min_tokens": {"min_tokens": 2},
    "logprobs": {"logprobs": 2},
    "prompt_logprobs": {"prompt_logprobs": 2},
    "structured_outputs": {"structured_outputs": {"regex": "[ab]{4}"}},
}


def _generate(llm: LLM, **fields: Any) -> list[RequestOutput]:
    params = {"temperature": 0.0, "max_tokens": _TOKENS, "ignore_eos": True, **fields}
    return llm.generate(prompts(4, 20, seed=31), SamplingParams(**params))


def _tokens(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def _feature(name: str, why: str) -> Callable[[Callable[[Subject, LLM], None]], Callable[[Subject], None]]:
    """A check of one feature, on a tiny Llama; not claimed where the platform does not declare it."""

    def register(function: Callable[[Subject, LLM], None]) -> Callable[[Subject], None]:
        def run(subject: Subject) -> None:
            subject.require(name in subject.capabilities.sampling, f"capabilities().sampling has no {name}: it")
            with subject.llm(_FAMILY, max_num_seqs=8) as llm:
                function(subject, llm)

        run.__doc__ = function.__doc__
        return check(f"sampling.{name}", "serve", why)(run)

    return register


# --- drawing -------------------------------------------------------------------------------------------------


@_feature("temperature", "at temperature 0 everyone expects one answer, at 1 not")
def temperature(subject: Subject, llm: LLM) -> None:
    """A high temperature gives other tokens than the greedy ones, and among many draws more than a low one."""
    greedy, hot = (_flat(_generate(llm, temperature=t)) for t in (0.0, 5.0))
    mild = _flat(_generate(llm, temperature=0.05))
    expect(_unlike(greedy, hot) > len(greedy) // 2, "at temperature 5 more than half of the tokens are the greedy ones")
    expect(_unlike(greedy, mild) < _unlike(greedy, hot), "temperature 0.05 strays as far from greedy as temperature 5")


@_feature("seed", "a seed is the promise to draw the same again")
def seed(subject: Subject, llm: LLM) -> None:
    """The same seed draws the same tokens, another one others."""
    hot = {"temperature": 3.0} if "temperature" in subject.capabilities.sampling else {}
    first, again, other = (_flat(_generate(llm, seed=number, **hot)) for number in (1, 1, 2))
    if subject.capabilities.deterministic:
        expect(first == again, "the same seed drew other tokens")
    else:
        # Rounding may change a draw, and all that follow it.
        expect(_unlike(first, again) < len(first) // 2, "the same seed drew mostly other tokens")
    if hot:
        expect(first != other, "two seeds draw the same tokens")


def _flat(outputs: Sequence[RequestOutput]) -> list[int]:
    return [token for tokens in _tokens(outputs) for token in tokens]


def _unlike(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(one != other for one, other in zip(left, right, strict=True))


def _hot(subject: Subject) -> dict[str, Any]:
    """Fields that draw nearly evenly. Raises Broken where nothing can be drawn."""
    features = subject.capabilities.sampling
    expect("temperature" in features, "capabilities().sampling has filters of draws and no temperature to draw at")
    return {"temperature": 5.0, **({"seed": 3} if "seed" in features else {})}


def _leaves_only_the_best(llm: LLM, subject: Subject, what: str, **fields: Any) -> None:
    """That a filter which leaves nothing but the most likely token does so, however high the temperature."""
    oracle = oracle_of(subject, llm, _FAMILY)
    for output in _generate(llm, **_hot(subject), **fields):
        wrong = oracle.wrong_greedy(output.prompt_token_ids, output.outputs[0].token_ids, subject.dtype)
        expect(not wrong, f"{what} leaves more than the most likely token: {wrong}")
    hot = _flat(_generate(llm, **_hot(subject)))
    expect(
        _unlike(hot, _flat(_generate(llm))) > 0, "at temperature 5 all tokens are the greedy ones: nothing was tested"
    )


@_feature("top_k", "it cuts off the long tail of nonsense")
def top_k(subject: Subject, llm: LLM) -> None:
    """With top_k = 1 nothing but the most likely token is drawn."""
    _leaves_only_the_best(llm, subject, "top_k 1", top_k=1)


@_feature("top_p", "it cuts off the long tail of nonsense")
def top_p(subject: Subject, llm: LLM) -> None:
    """With a tiny top_p nothing but the most likely token is drawn."""
    _leaves_only_the_best(llm, subject, "top_p 0.000001", top_p=1e-6)


@_feature("min_p", "it cuts off the long tail of nonsense")
def min_p(subject: Subject, llm: LLM) -> None:
    """With min_p = 1 nothing but the most likely token is drawn."""
    _leaves_only_the_best(llm, subject, "min_p 1", min_p=1.0)


# --- what changes logits -------------------------------------------------------------------------------------


def _adjusted_greedy(
    subject: Subject, llm: LLM, fields: dict[str, Any], adjust: Callable[[Tensor, list[int], list[int]], None]
) -> None:
    """That greedy tokens are the largest of the reference's logits after `adjust(row, prompt, output so far)`."""
    oracle, name = oracle_of(subject, llm, _FAMILY), next(iter(fields))
    plain, changed = _generate(llm), _generate(llm, **fields)
    expect(_tokens(plain) != _tokens(changed), f"{fields} changes no token of {len(plain)} answers")
    for output in changed:
        tokens, prompt = output.outputs[0].token_ids, output.prompt_token_ids
        logits = oracle.logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :].clone()
        tie = NEAR_TIE[subject.dtype] * float(logits.abs().max())
        for index, row in enumerate(logits):
            adjust(row, prompt, tokens[:index])
        wrong = first_wrong(logits, tokens, 2 * tie)
        expect(not wrong, f"{name} {fields[name]}: {wrong}")


@_feature("presence_penalty", "it is OpenAI's: over the output, once for each token that came")
def presence_penalty(subject: Subject, llm: LLM) -> None:
    """Tokens that came before lose the penalty once."""

    def adjust(row: Tensor, prompt: list[int], output: list[int]) -> None:
        row[list(set(output))] -= 2.0

    _adjusted_greedy(subject, llm, {"presence_penalty": 2.0}, adjust)


@_feature("frequency_penalty", "it is OpenAI's: over the output, for each time that a token came")
def frequency_penalty(subject: Subject, llm: LLM) -> None:
    """Tokens lose the penalty for each time that they came."""

    def adjust(row: Tensor, prompt: list[int], output: list[int]) -> None:
        for token in output:
            row[token] -= 2.0

    _adjusted_greedy(subject, llm, {"frequency_penalty": 2.0}, adjust)


@_feature("repetition_penalty", "it is CTRL's: over prompt and output, by division")
def repetition_penalty(subject: Subject, llm: LLM) -> None:
    """Logits of tokens in prompt or output are divided, or multiplied where they are negative."""

    def adjust(row: Tensor, prompt: list[int], output: list[int]) -> None:
        seen = list({*prompt, *output})
        row[seen] = torch.where(row[seen] > 0, row[seen] / 1.5, row[seen] * 1.5)

    _adjusted_greedy(subject, llm, {"repetition_penalty": 1.5}, adjust)


@_feature("logit_bias", "it is how clients force and forbid words")
def logit_bias(subject: Subject, llm: LLM) -> None:
    """A token is forced, and others are forbidden."""
    forced = _generate(llm, logit_bias={9: 100.0})
    expect(set(_flat(forced)) == {9}, f"with a bias of 100 on token 9 the tokens {sorted(set(_flat(forced)))[:5]} came")
    usual = sorted(set(_flat(_generate(llm))))[:8]
    without = _flat(_generate(llm, logit_bias=dict.fromkeys(usual, -100.0)))
    expect(not set(usual) & set(without), f"tokens with a bias of -100 came: {sorted(set(usual) & set(without))}")


@_feature("allowed_token_ids", "classifiers are asked with the tokens of their labels")
def allowed_token_ids(subject: Subject, llm: LLM) -> None:
    """Each token is the likeliest of those that are allowed."""
    allowed = token_ids("bdfhjl")

    def adjust(row: Tensor, prompt: list[int], output: list[int]) -> None:
        kept = row[allowed].clone()
        row[:] = -torch.inf
        row[allowed] = kept

    _adjusted_greedy(subject, llm, {"allowed_token_ids": tuple(allowed)}, adjust)


@_feature("bad_words", "it is how clients keep a word out that tokens alone do not make")
def bad_words(subject: Subject, llm: LLM) -> None:
    """Neither a word of one token comes, nor one of two, whose tokens may."""
    plain = [output.outputs[0].text for output in _generate(llm)]
    words = [text[at : at + size] for size in (1, 2) for text in plain for at in range(len(text) - 1)]
    words = [next(word for word in words if len(word) == size and word.isascii() and word.isalpha()) for size in (1, 2)]
    for word in words:
        spelling = token_ids(word)
        for tokens in _tokens(_generate(llm, bad_words=(word,))):
            came = any(tokens[at : at + len(spelling)] == spelling for at in range(len(tokens)))
            expect(not came, f"bad_words {word!r}: it came")


@_feature("logprobs", "evaluations and classifiers are built on these numbers")
def logprobs(subject: Subject, llm: LLM) -> None:
    """The logprob, rank and best alternatives of each token are the reference's."""
    oracle = oracle_of(subject, llm, _FAMILY)
    for output in _generate(llm, logprobs=4):
        choice = output.outputs[0]
        expect(
            choice.logprobs is not None and len(choice.logprobs) == _TOKENS, "there are not as many logprobs as tokens"
        )
        _check_logprobs(subject, oracle, output.prompt_token_ids, choice)


def _check_logprobs(subject: Subject, oracle: Oracle, prompt: Sequence[int], choice: CompletionOutput) -> None:
    logits = oracle.logits([*prompt, *choice.token_ids[:-1]])[len(prompt) - 1 :]
    wanted = logits.log_softmax(-1)
    limit = 2 * LOGITS[subject.dtype] * float(logits.abs().max())
    for row, token, given in zip(wanted, choice.token_ids, choice.logprobs or [], strict=True):
        expect(len(given.top) == 4, f"4 alternatives are due, {len(given.top)} came")
        for listed, value in [(token, given.logprob), *given.top]:
            off = abs(value - float(row[listed]))
            expect(off <= limit, f"the logprob of token {listed} is off by {off:.3g}, {limit:.3g} is allowed")
        values = [value for _, value in given.top]
        expect(values == sorted(values, reverse=True), f"the alternatives are not in order: {values}")
        expect(given.rank >= 1, f"the rank of a token is {given.rank}")


@_feature("prompt_logprobs", "benchmarks of models compare the likelihood of texts")
def prompt_logprobs(subject: Subject, llm: LLM) -> None:
    """Those of a prompt's tokens are the reference's, also where the prefix cache has the prompt, and beside others."""
    oracle = oracle_of(subject, llm, _FAMILY)
    plain = SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True)
    asking = msgspec.structs.replace(plain, prompt_logprobs=3)
    expected = _tokens(llm.generate(prompts(4, 60, seed=31), plain))
    found = llm.generate(prompts(4, 60, seed=31), [asking, asking, plain, asking])
    wrong = [oracle.wrong_greedy(o.prompt_token_ids, o.outputs[0].token_ids, subject.dtype) for o in found]
    expect(not any(wrong), f"an answer with prompt_logprobs is another: {wrong}")
    if subject.capabilities.deterministic:
        expect(_tokens(found) == expected, "answers with prompt_logprobs are not bit for bit those without")
    for output in (found[0], found[1], found[3]):
        logprobs, prompt = output.prompt_logprobs, output.prompt_token_ids
        expect(
            logprobs is not None and len(logprobs) == len(prompt) - 1, "they are not one fewer than the prompt's tokens"
        )
        wanted = oracle.logits(prompt)
        limit = 2 * LOGITS[subject.dtype] * float(wanted.abs().max())
        for row, token, given in zip(wanted.log_softmax(-1)[:-1], prompt[1:], logprobs or [], strict=True):
            expect(len(given.top) == 3, f"3 alternatives are due, {len(given.top)} came")
            for listed, value in [(token, given.logprob), *given.top]:
                off = abs(value - float(row[listed]))
                expect(off <= limit, f"the logprob of token {listed} is off by {off:.3g}, {limit:.3g} is allowed")


# --- the form of answers -------------------------------------------------------------------------------------


@_feature("structured_outputs", "programs read such answers: one letter beside the form breaks them")
def structured_outputs(subject: Subject, llm: LLM) -> None:
    """Each token is the likeliest that the form allows, then the answer ends; those beside it are as ever."""
    oracle, letters, length = oracle_of(subject, llm, _FAMILY), "bdfhjl", 8
    plain = SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True)
    form = StructuredOutputs(regex=f"[{letters}]{{{length}}}")
    formed = SamplingParams(temperature=0.0, max_tokens=_TOKENS, structured_outputs=form)
    with_form, beside, *others = llm.generate(prompts(4, 20, seed=31), [formed, plain, formed, plain])
    for output in (with_form, others[0]):
        _expect_form(subject, oracle, output, token_ids(letters), length)
    for output in (beside, others[1]):
        wrong = oracle.wrong_greedy(output.prompt_token_ids, output.outputs[0].token_ids, subject.dtype)
        expect(not wrong, f"the answer beside one of a given form is another: {wrong}")


def _expect_form(subject: Subject, oracle: Oracle, output: RequestOutput, allowed: list[int], length: int) -> None:
    prompt, choice = output.prompt_token_ids, output.outputs[0]
    tokens = choice.token_ids[:length]
    expect(set(tokens) <= set(allowed), f"of the form are the tokens {allowed}, {tokens} came")
    _expect_end(choice, length + 1, "stop", f"a form of {length} tokens")
    logits = oracle.logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    tie = NEAR_TIE[subject.dtype] * float(logits.abs().max())
    among = torch.full_like(logits, float("-inf"))
    among[:, allowed] = logits[:, allowed]
    wrong = first_wrong(among, tokens, 2 * tie)
    expect(not wrong, f"of the tokens that the form allows: {wrong}")


# --- when an answer ends -------------------------------------------------------------------------------------


def _eos_model(subject: Subject) -> tuple[checkpoints.Checkpoint, int, int]:
    """A tiny Llama whose end-of-sequence token is one that it says: (model, that token, where it comes first)."""

    def make() -> tuple[checkpoints.Checkpoint, int, int]:
        with subject.llm() as llm:
            tokens = _ending(llm).token_ids
        where = next(i for i in range(3, len(tokens)) if tokens[i] not in tokens[:i])
        changed = checkpoints.write("llama", subject.directory / "llama-eos", eos_token_id=tokens[where])
        return changed, tokens[where], where

    return subject.kept("eos model", make)


def _ending(llm: LLM, **fields: Any) -> CompletionOutput:
    params = SamplingParams(temperature=0.0, max_tokens=12, **fields)
    return llm.generate([prompts(2, 10, seed=41)[1]], params)[0].outputs[0]


@check("sampling.stops", "serve", "an answer that does not end costs as much as it can")
def stops(subject: Subject) -> None:
    """EOS and stop_token_ids end an answer with finish_reason `stop`; ignore_eos and max_tokens do what they say."""
    model, token, where = _eos_model(subject)
    with subject.llm() as llm:
        found = _ending(llm, stop_token_ids=(token,))
        _expect_end(found, where + 1, "stop", f"stop_token_ids {token}")
    with subject.llm(path=model.path) as llm:
        _expect_end(_ending(llm), where + 1, "stop", f"EOS {token}")
        _expect_end(_ending(llm, ignore_eos=True), 12, "length", "ignore_eos")


def _expect_end(found: CompletionOutput, count: int, reason: str, what: str) -> None:
    got = f"{len(found.token_ids)} tokens and {found.finish_reason!r}"
    expect(
        (len(found.token_ids), found.finish_reason) == (count, reason),
        f"{what}: {count} and {reason!r} are due, {got} came",
    )


@check("sampling.min_tokens", "serve", "summaries are asked for with a least length")
def min_tokens(subject: Subject) -> None:
    """Before min_tokens neither EOS nor a stop token comes, also where it is the most likely one."""
    subject.require("min_tokens" in subject.capabilities.sampling, "capabilities().sampling has no min_tokens: it")
    model, token, where = _eos_model(subject)
    with subject.llm(path=model.path) as llm:
        found = _ending(llm, min_tokens=where + 4)
        expect(len(found.token_ids) >= where + 4, f"min_tokens {where + 4}: {len(found.token_ids)} tokens came")
        expect(token not in found.token_ids[: where + 3], "min_tokens: EOS came before its time")


@check("sampling.undeclared", "serve", "a field that is quietly ignored is an answer that nobody asked for")
def undeclared(subject: Subject) -> None:
    """A request for a feature that is not declared is refused, and the error names the field."""
    missing = [feature for feature in SAMPLING_FEATURES if feature not in subject.capabilities.sampling]
    if not missing:
        raise NotClaimed("every feature is declared, so there is none to refuse")
    with subject.llm() as llm:
        for feature in missing:
            fields = {"temperature": 0.0, "max_tokens": 2, **ASKING[feature]}
            try:
                llm.generate([[5, 6]], msgspec.convert(fields, SamplingParams))
            except InvalidRequest as error:
                expect(error.param == feature, f"the refusal of {feature} names {error.param!r}: {error}")
                continue
            raise Broken(f"{feature} is not declared, and a request for it is answered")
