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


def test_prompt_logprobs_are_those_of_the_same_tokens_generated(llm: LLM) -> None:
    """Computed anew although the prefix cache has the prompt, in steps beside others, and told once for all choices."""
    sampled = SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True, logprobs=2)
    (written,) = llm.generate("hello", sampled)
    text = written.prompt_token_ids + written.outputs[0].token_ids
    asking = SamplingParams(n=2, temperature=0.0, max_tokens=3, ignore_eos=True, prompt_logprobs=2)
    outputs = llm.generate([text, "beside", text], [asking, GREEDY, asking])
    for output in (outputs[0], outputs[2]):
        assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(text) - 1
        assert output.prompt_logprobs[-50:] == written.outputs[0].logprobs
        assert output.outputs[0].token_ids == output.outputs[1].token_ids
        assert output.num_cached_tokens == 0
    assert outputs[1].prompt_logprobs is None
    (plain,) = llm.generate(text, SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    assert plain.num_cached_tokens > 0 and plain.outputs[0].token_ids == outputs[0].outputs[0].token_ids


def test_prompt_logprobs_survive_preemption(tiny_model: Callable[[str], Path]) -> None:
    """A cache too small for both: one is put back in the middle of its prompt, and tells everything once."""
    prompts = [[5 + i % 90 for i in range(start, start + 60)] for start in (0, 7, 14, 21)]
    asking = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, prompt_logprobs=0)
    options = {"dtype": "float32", "progress": False, "max_model_len": 128, "max_num_batched_tokens": 24}
    with LLM(str(tiny_model("llama")), max_num_seqs=4, **options) as roomy:
        wanted = [roomy.generate([prompt], asking)[0] for prompt in prompts]
        block_bytes = roomy.engine.memory_plan.kv_block_bytes
    with LLM(str(tiny_model("llama")), max_num_seqs=4, kv_cache_memory=str(block_bytes * 14), **options) as tight:
        found = tight.generate(prompts, asking)
        assert tight.engine.stats().preemptions > 0
    assert [one.prompt_logprobs for one in found] == [one.prompt_logprobs for one in wanted]
    assert [one.outputs[0].token_ids for one in found] == [one.outputs[0].token_ids for one in wanted]


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
