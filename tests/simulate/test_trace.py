"""Traces: what is read, what is made, and what is wrong with a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.simulate.prompts import PromptMaker
from core.simulate.trace import TraceRequest, check_lengths, read_trace, synthetic_trace


def written(directory: Path, *lines: Any) -> str:
    file = directory / "trace.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(file)


LINE = {"arrival": 1.0, "prompt_tokens": 5, "output_tokens": 2}


def test_lines_in_order_of_arrival(tmp_path: Path) -> None:
    late = {"arrival": 2.5, "prompt_tokens": [7, 8, 9], "output_tokens": 4, "priority": -1}
    early = {**LINE, "prefix": "system", "prefix_tokens": 3}
    assert read_trace(written(tmp_path, late, "", early)) == [
        TraceRequest(arrival=1.0, prompt_tokens=5, output_tokens=2, shared=(("system", 3),), line=3),
        TraceRequest(arrival=2.5, prompt_tokens=3, output_tokens=4, priority=-1, token_ids=[7, 8, 9], line=1),
    ]


def test_mooncakes_lines(tmp_path: Path) -> None:
    line = {"timestamp": 27_482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48], "type": "chat"}
    (request,) = read_trace(written(tmp_path, line))
    assert request.arrival == pytest.approx(27.482)
    assert request.shared == (("46", 512), ("47", 512), ("48", 76)) and request.output_tokens == 52
    bare = {"timestamp": 0, "input_length": 7, "output_length": 1}
    assert read_trace(written(tmp_path, bare))[0].shared == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ({"arrival": 1.0, "prompt_tokens": 5}, "output_tokens"),
        ({**LINE, "arrival": -1}, "arrival"),
        ({**LINE, "arrival": "now"}, "arrival"),
        ({**LINE, "prompt_tokens": 0}, "prompt_tokens"),
        ({**LINE, "prompt_tokens": []}, "prompt_tokens"),
        ({**LINE, "prompt_tokens": [1, -1]}, "prompt_tokens"),
        ({**LINE, "output_tokens": 0}, "output_tokens"),
        ({**LINE, "outputs": 3}, "unknown field `outputs`"),
        ({**LINE, "prefix": "a"}, "belong together"),
        ({**LINE, "prefix_tokens": 3}, "belong together"),
        ({**LINE, "prefix": "a", "prefix_tokens": 6}, "more than the 5"),
        ({**LINE, "prompt_tokens": [1, 2], "prefix": "a", "prefix_tokens": 1}, "one of the two"),
        ({"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [1]}, "give 2"),
        ({"timestamp": 1, "input_length": 5}, "output_length"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_right(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf'(?s)--trace: .*trace\.jsonl, line 3: .*{message}.*a line is {{"arrival"'):
        read_trace(written(tmp_path, LINE, "", line))


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no request"):
        read_trace(written(tmp_path, ""))
    with pytest.raises(ConfigError, match="cannot read"):
        read_trace(str(tmp_path / "nothing"))


def test_what_the_model_cannot_serve(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, LINE, {**LINE, "output_tokens": 100}, {**LINE, "prompt_tokens": [1, 384]}))
    check_lengths(requests, 105, 385)
    with pytest.raises(ConfigError, match=r"line 2: 5 prompt and 100 output tokens .*--max-model-len"):
        check_lengths(requests, 104, 385)
    with pytest.raises(ConfigError, match="line 3: token id 384"):
        check_lengths(requests, 105, 384)


# --- made ----------------------------------------------------------------------------------------------------


def test_arrivals_come_at_the_rate() -> None:
    made = {"input_len": 10, "output_len": 3, "prefix_len": 0, "max_model_len": 13}
    requests = synthetic_trace(4000, rate=20.0, **made, seed=1)
    assert requests[-1].arrival == pytest.approx(4000 / 20, rel=0.1)
    assert [r.arrival for r in requests] == sorted(r.arrival for r in requests)
    assert requests == synthetic_trace(4000, rate=20.0, **made, seed=1)
    assert requests != synthetic_trace(4000, rate=20.0, **made, seed=2)
    assert {r.arrival for r in synthetic_trace(5, rate=None, **made, seed=0)} == {0.0}


@pytest.mark.parametrize(
    ("lengths", "message"),
    [((4, 1, 5), "--prefix-len: 5"), ((4, 10, 0), "--input-len: 4 .* context of 13.*--max-model-len")],
)
def test_lengths_that_cannot_be(lengths: tuple[int, int, int], message: str) -> None:
    prompt, output, prefix = lengths
    with pytest.raises(ConfigError, match=message):
        synthetic_trace(1, rate=None, input_len=prompt, output_len=output, prefix_len=prefix, max_model_len=13, seed=0)


@given(st.integers(1, 200), st.integers(0, 50), st.integers(3, 1000), st.integers(0, 99))
def test_prompts_share_what_they_shall_and_no_more(own: int, shared: int, vocab: int, seed: int) -> None:
    pieces = (("a", shared),) if shared else ()
    first, second = (
        TraceRequest(arrival=0, prompt_tokens=shared + own, output_tokens=1, shared=pieces, line=line)
        for line in (1, 2)
    )
    prompts = PromptMaker(vocab, seed)
    one, two = prompts.tokens(first), prompts.tokens(second)
    assert len(one) == len(two) == shared + own and all(0 <= token < vocab for token in one + two)
    assert one[:shared] == two[:shared]
    if own > 40:
        assert one[shared:] != two[shared:]
    assert PromptMaker(vocab, seed).tokens(first) == one


def test_given_tokens_are_the_prompt() -> None:
    request = TraceRequest(arrival=0, prompt_tokens=2, output_tokens=1, token_ids=[5, 6])
    assert PromptMaker(100, 0).tokens(request) == [5, 6]
