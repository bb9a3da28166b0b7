"""Requests with a form, through the engine: alone, beside others, preempted, resumed, failing, refused."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core import LLM, SamplingParams
from core.engine.input import InputProcessor
from core.errors import InvalidRequest
from core.structured.guidance import Matchers
from core.types import StructuredOutputs

LETTERS = StructuredOutputs(regex="[a-f]{4,9}")
FORMED = SamplingParams(temperature=1.5, seed=3, max_tokens=12, structured_outputs=LETTERS)
PLAIN = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
#: Whose parse grows with each token until it is more than a parser may hold.
AMBIGUOUS = "start: x0\n" + "\n".join(f'x{i}: "a" x{(i + 1) % 40} | x{(i + 3) % 40} "a" | ' for i in range(40))


@pytest.fixture(scope="module")
def llm(tiny_model: Callable[[str], Path]) -> Iterator[LLM]:
    with LLM(str(tiny_model("llama")), dtype="float32", progress=False, max_num_seqs=4) as made:
        yield made


def texts(llm: LLM, params: list[SamplingParams]) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(["ab", "cde", "f g h", "i"][: len(params)], params)]


def test_answers_have_their_form_and_those_beside_them_are_as_ever(llm: LLM) -> None:
    assert all(re.fullmatch("[a-f]{4,9}", text) for text in texts(llm, [FORMED] * 4))
    alone = texts(llm, [PLAIN] * 4)
    choice = SamplingParams(max_tokens=20, seed=1, structured_outputs=StructuredOutputs(choice=("yes", "no, never")))
    mixed = texts(llm, [PLAIN, choice, PLAIN, FORMED])
    assert mixed[0::2] == alone[0::2]
    assert mixed[1] in ("yes", "no, never") and re.fullmatch("[a-f]{4,9}", mixed[3])


def test_every_choice_has_a_matcher_of_its_own(llm: LLM) -> None:
    (output,) = llm.generate("x", msgspec.structs.replace(FORMED, n=4))
    found = [choice.text for choice in output.outputs]
    assert len(set(found)) > 1 and all(re.fullmatch("[a-f]{4,9}", text) for text in found)


def test_preempted_and_moved_answers_go_on_in_their_form(llm: LLM, tiny_model: Callable[[str], Path]) -> None:
    params = [msgspec.structs.replace(FORMED, seed=seed, max_tokens=40) for seed in range(4)]
    long = StructuredOutputs(regex="([a-f]{3}-){8}")
    params = [msgspec.structs.replace(each, structured_outputs=long) for each in params]
    with LLM(str(tiny_model("llama")), dtype="float32", progress=False, max_num_seqs=4, block_size=4,
             max_model_len=64, kv_cache_memory="56KiB") as small:  # fmt: skip
        assert texts(small, params) == texts(llm, params)
        assert small.engine.stats().preemptions > 0
    (request,) = InputProcessor(llm.engine.config, llm.tokenizer).requests("ab", params[0], request_id="moved")
    (whole,) = (output.outputs[0].token_ids for output in llm.generate("ab", params[0]))
    llm.engine.add(msgspec.structs.replace(request, output_token_ids=whole[:7]))
    rest: list[int] = []
    while llm.engine.has_work():
        rest += [token for delta in llm.engine.step() for token in delta.token_ids]
    assert whole[:7] + rest == whole


def test_a_grammar_that_is_not_compiled_holds_nobody_up(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request and its other choices wait, an aborted one is forgotten; the steps of the others go on meanwhile."""
    compiled, compile_ = threading.Event(), Matchers._compile

    def slowly(self: Matchers, grammar: str) -> Any:
        assert compiled.wait(60)
        return compile_(self, grammar)

    monkeypatch.setattr(Matchers, "_compile", slowly)
    processor = InputProcessor(llm.engine.config, llm.tokenizer)
    new = msgspec.structs.replace(FORMED, n=2, structured_outputs=StructuredOutputs(regex="[a-e]{3,9}x"))
    for name, params in (("slow", new), ("gone", new), ("plain", PLAIN)):
        for request in processor.requests("ab", params, request_id=name):
            llm.engine.add(request)
    llm.engine.abort("gone-0")
    plain: list[int] = []
    while len(plain) < 12:
        deltas = llm.engine.step()
        assert {delta.request_id for delta in deltas} <= {"plain"}
        plain += [token for delta in deltas for token in delta.token_ids]
    assert llm.engine.stats().running == 0 and llm.engine.has_work() and llm.engine.step() == []
    compiled.set()
    found: dict[str, list[int]] = {}
    while llm.engine.has_work():
        for delta in llm.engine.step():
            found.setdefault(delta.request_id, []).extend(delta.token_ids)
    assert found.keys() == {"slow-0", "slow-1", "gone-1"}
    assert all(re.fullmatch("[a-e]{3,9}x", llm.tokenizer.decode(tokens)) for tokens in found.values())
    assert llm.tokenizer.decode(plain) == texts(llm, [PLAIN])[0]


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_forced_is_not_sampled_and_the_answer_is_the_same(llm: LLM, n: int) -> None:
    """With logprobs each token is sampled: the tokens are those, as a token of this model is one character."""
    form = StructuredOutputs(regex="[ab]{2}-forced text-([cd]{2}, and so on, ){2}[xy]{3}")
    jumping = SamplingParams(n=n, temperature=1.3, seed=5, max_tokens=80, structured_outputs=form)
    stepping = msgspec.structs.replace(jumping, logprobs=0)
    beside = [PLAIN, msgspec.structs.replace(PLAIN, max_tokens=50)]
    jumped = llm.generate(["ab", "cde", "f"], [jumping, *beside])
    stepped = llm.generate(["ab", "cde", "f"], [stepping, *beside])
    tokens = [[choice.token_ids for choice in output.outputs] for output in jumped]
    assert tokens == [[choice.token_ids for choice in output.outputs] for output in stepped]
    assert all(re.fullmatch(form.regex or "", choice.text) for choice in jumped[0].outputs)
    assert {choice.finish_reason for choice in jumped[0].outputs} == {"stop"}
    before = llm.engine.stats().steps
    (alone,) = llm.generate("ab", jumping)
    assert [choice.token_ids for choice in alone.outputs] == tokens[0]
    assert llm.engine.stats().steps - before < len(tokens[0][0]) // 2


def test_what_is_forced_ends_where_the_answer_may_not_go_on(llm: LLM) -> None:
    form = StructuredOutputs(regex="[ab]-forced text")
    for most in (1, 2, 5):
        params = SamplingParams(temperature=0.0, max_tokens=most, structured_outputs=form)
        (output,) = llm.generate("ab", params)
        assert len(output.outputs[0].token_ids) == most and output.outputs[0].finish_reason == "length"
        assert "a-forced text".endswith(output.outputs[0].text[1:], 1, most) and llm.engine.stats().running == 0
    stop = SamplingParams(
        temperature=0.0, max_tokens=40, structured_outputs=form, stop_token_ids=(llm.tokenizer.encode("c")[0],)
    )
    (output,) = llm.generate("ab", stop)
    assert output.outputs[0].text.endswith("-forc") and output.outputs[0].stop_reason is not None


def test_more_grammars_than_are_kept(llm: LLM) -> None:
    forms = [StructuredOutputs(regex=f"[a-f]{{{1 + index % 7}}}x{index}y") for index in range(100)]
    params = [msgspec.structs.replace(FORMED, max_tokens=20, structured_outputs=form) for form in forms]
    outputs = llm.generate(["ab"] * len(params), params)
    for form, output in zip(forms, outputs, strict=True):
        assert re.fullmatch(form.regex or "", output.outputs[0].text)


def test_one_that_fails_ends_alone(llm: LLM) -> None:
    only_a = {llm.tokenizer.encode("a")[0]: 100.0}
    failing = SamplingParams(
        temperature=0.0, max_tokens=200, logit_bias=only_a, structured_outputs=StructuredOutputs(grammar=AMBIGUOUS)
    )
    good, bad, formed = llm.generate(["ab", "x", "y"], [PLAIN, failing, FORMED])
    assert bad.outputs[0].finish_reason == "error" and set(bad.outputs[0].text) == {"a"}
    assert good.outputs[0].text == texts(llm, [PLAIN])[0]
    assert re.fullmatch("[a-f]{4,9}", formed.outputs[0].text)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ignore_eos": True}, "ignore_eos"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"structured_outputs": StructuredOutputs(regex="a(")}, "structured_outputs.regex"),
        ({"structured_outputs": StructuredOutputs(json="{")}, "structured_outputs.json"),
    ],
)
def test_what_cannot_end_or_compile_is_refused(llm: LLM, fields: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate("x", msgspec.structs.replace(FORMED, **fields))
    assert caught.value.param == param


def test_a_form_that_nothing_would_follow_is_refused(llm: LLM) -> None:
    config = llm.engine.config
    sampler = msgspec.structs.replace(config, options=msgspec.structs.replace(config.options, sampler="lucky"))
    endless = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, eos_token_ids=()))
    undeclared = msgspec.structs.replace(config, platform=msgspec.structs.replace(config.platform, sampling=("seed",)))
    greedy = msgspec.structs.replace(FORMED, temperature=0.0)
    for other, words in ((sampler, "the sampler 'lucky'"), (endless, "end-of-sequence"), (undeclared, "platform")):
        with pytest.raises(InvalidRequest, match=words) as caught:
            InputProcessor(other, llm.tokenizer).checked(greedy, "response_format")
        assert caught.value.param in ("response_format", "structured_outputs")
