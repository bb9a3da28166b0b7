"""The offline door: prompts of every form in, outputs in order, errors before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core import LLM, SamplingParams
from core.errors import ConfigError, InvalidRequest

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Callable[[str], Path]) -> Iterator[LLM]:
    options: dict[str, Any] = {"max_num_seqs": 4, "max_queued_requests": 2, "chat_template": TEMPLATE}
    with LLM(str(tiny_model("llama")), dtype="float32", progress=False, **options) as made:
        yield made


def texts(outputs: list[Any]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_prompts_of_every_form(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    whole = texts(llm.generate("hello", GREEDY))
    assert texts(llm.generate(["hello"], GREEDY)) == whole
    assert texts(llm.generate(ids, GREEDY)) == whole
    assert texts(llm.generate([ids, "hello"], GREEDY)) == whole * 2
    assert llm.generate([], GREEDY) == []


def test_more_prompts_than_the_queue_holds_come_back_in_order(llm: LLM) -> None:
    prompts = [f"prompt {i}" for i in range(30)]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    assert all(len(output.outputs[0].token_ids) == 6 for output in outputs)
    assert texts(outputs[7:8]) == texts(llm.generate(prompts[7], GREEDY))


def test_parameters_for_each_prompt(llm: LLM) -> None:
    lengths = [1, 5, 3]
    params = [SamplingParams(max_tokens=n, ignore_eos=True, seed=1) for n in lengths]
    outputs = llm.generate(["a", "b", "c"], params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    with pytest.raises(ConfigError, match="2 sets of sampling parameters for 3 prompts"):
        llm.generate(["a", "b", "c"], params[:2])


def test_choices_and_logprobs(llm: LLM) -> None:
    (output,) = llm.generate("hello", SamplingParams(n=3, seed=4, max_tokens=5, logprobs=2, ignore_eos=True))
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    for choice in output.outputs:
        assert choice.logprobs is not None
        assert [len(found.top) for found in choice.logprobs] == [2] * 5
        assert choice.finish_reason == "length"


def test_a_stop_string_cuts_the_text_and_frees_the_request(llm: LLM) -> None:
    (whole,) = texts(llm.generate("hello", SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)))
    stop = whole[3:5]
    (output,) = llm.generate("hello", SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop=(stop,)))
    choice = output.outputs[0]
    assert choice.text == whole[: whole.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert llm.engine.stats().running == 0


def test_chat_renders_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    rendered = texts(llm.generate("[user] hi\n[assistant]", GREEDY))
    assert texts(llm.chat(messages, GREEDY)) == rendered
    assert texts(llm.chat([messages, messages], GREEDY)) == rendered * 2


@pytest.mark.parametrize(
    ("prompts", "param"), [("", "prompt"), ([[]], "prompt"), (["fine", "x" * 600], "prompt"), ([3.5], "prompts")]
)
def test_a_bad_prompt_is_refused_before_anything_runs(llm: LLM, prompts: Any, param: str) -> None:
    steps = llm.engine.stats().steps
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(prompts, GREEDY)
    assert caught.value.param == param
    assert llm.engine.stats().steps == steps


def test_a_cache_too_small_for_one_request_names_both_options(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"--kv-cache-memory: .*--max-model-len 512"):
        LLM(str(tiny_model("llama")), dtype="float32", progress=False, kv_cache_memory="64KiB")


def test_dummy_weights_need_no_checkpoint(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_model("llama") / name).read_bytes())
    with LLM(str(tmp_path), load_format="dummy", dtype="float32", progress=False) as made:
        first = texts(made.generate("hello", GREEDY))
    with LLM(str(tmp_path), load_format="dummy", dtype="float32", progress=False) as made:
        assert texts(made.generate("hello", GREEDY)) == first
