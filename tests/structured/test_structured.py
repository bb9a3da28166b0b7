"""Forms are compiled within bounds, and matchers let exactly their answers through."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from core.errors import InvalidRequest
from core.structured.base import Matcher
from core.structured.grammar import check
from core.structured.guidance import Matchers
from core.types import StructuredOutputs

EOS = 2


@pytest.fixture(scope="module")
def matchers(tmp_path_factory: pytest.TempPathFactory) -> Matchers:
    file = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    tiny_models.byte_tokenizer().save(str(file))
    return Matchers(str(file), tiny_models.VOCAB, [EOS])


def ids(text: str) -> list[int]:
    return tiny_models.byte_tokenizer().encode(text).ids


def takes(matcher: Matcher, text: str) -> bool:
    """Whether each token of the text may come, and then the end."""
    for token in [*ids(text), EOS]:
        if matcher.forbidden()[token]:
            return False
        matcher.advance(token)
    return matcher.failure is None


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        (
            StructuredOutputs(json=SCHEMA),
            ['{"a": 1}', '{"a":-20}'],
            ['{"a": "x"}', "{}", '{"a": 1, "b": 2}', '{"a": 1'],
        ),
        (StructuredOutputs(json=json.dumps(SCHEMA)), ['{"a": 1}'], ["[]"]),
        (StructuredOutputs(json_object=True), ["{}", '{"x": [1, null]}'], ["[]", "1"]),
        (StructuredOutputs(regex="a+b|é"), ["aab", "é"], ["", "aa", "abb"]),
        (StructuredOutputs(choice=("a.b", "a b\n", "|")), ["a.b", "a b\n", "|"], ["axb", "a b", ""]),
        (StructuredOutputs(grammar='start: "(" start ")" | "x"'), ["x", "((x))"], ["((x)", "()"]),
    ],
)
def test_exactly_the_answers_of_a_form(
    matchers: Matchers, form: StructuredOutputs, right: list[str], wrong: list[str]
) -> None:
    check(form)
    assert all(takes(matchers.start(form), text) for text in right)
    assert not any(takes(matchers.start(form), text) for text in wrong)


def test_a_matcher_that_is_begun_again_goes_on_alike(matchers: Matchers) -> None:
    form, text = StructuredOutputs(json=SCHEMA), ids('{"a": 12}')
    whole = matchers.start(form)
    for done, token in enumerate(text):
        again = matchers.start(form, text[:done])
        assert np.array_equal(whole.forbidden(), again.forbidden())
        whole.advance(token)


def test_nothing_but_the_end_comes_behind_the_end(matchers: Matchers) -> None:
    matcher = matchers.start(StructuredOutputs(choice=("a",)))
    assert takes(matcher, "a")
    matcher.advance(EOS)
    assert np.flatnonzero(~matcher.forbidden()).tolist() == [EOS] and matcher.failure is None


def test_what_cannot_be_compiled_fails_its_own_answer(tmp_path: Path) -> None:
    matchers, form = Matchers(str(tmp_path), tiny_models.VOCAB, [EOS]), StructuredOutputs(choice=("a",))
    while not matchers.ready(form):
        time.sleep(0.01)
    matcher = matchers.start(form)
    matcher.advance(EOS)
    assert matcher.take_forced(8) == [] and "could not be compiled" in (matcher.failure or "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"json": {"type": "object", "if": {}}}, '"if"'),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"type": "strng"}}, "strng"),
        ({"json": "{"}, "EOF"),
        ({"json": "[1]"}, "object"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable"),
        ({"regex": "a("}, "unclosed group"),
        ({"regex": r"[^\s\S]"}, "no text matches"),
        ({"grammar": "start: foo"}, "foo"),
    ],
)
def test_a_bad_form_is_refused_by_name(fields: dict, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check(StructuredOutputs(**fields))
    assert caught.value.param == f"structured_outputs.{next(iter(fields))}"


def test_without_strict_the_other_keywords_hold(matchers: Matchers) -> None:
    form = StructuredOutputs(json={**SCHEMA, "if": {}}, strict=False)
    check(form)
    assert takes(matchers.start(form), '{"a": 1}') and not takes(matchers.start(form), "{}")


@pytest.mark.parametrize("fields", [{}, {"regex": "a", "choice": ("b",)}])
def test_exactly_one_form_is_given(fields: dict) -> None:
    with pytest.raises(InvalidRequest, match="exactly one"):
        StructuredOutputs(**fields)


HOSTILE = {
    "too long": "StructuredOutputs(choice=tuple(map(str, range(10**5))))",
    "nested": "StructuredOutputs(json='{\"items\":' * 3000 + '{}' + '}' * 3000)",
    "rules": "StructuredOutputs(grammar='start: r0\\n' + ''.join(f'r{i}:r{i+1}\\n' for i in range(2700)) + 'r2700: \"a\"')",
    "references": "StructuredOutputs(json={'$defs': {str(i): {'properties': {'a': {'$ref': f'#/$defs/{i+1}'}}} for i in "
    "range(600)} | {'600': {}}, '$ref': '#/$defs/0'})",
    "ambiguous": "StructuredOutputs(grammar='start: ' + 'x ' * 16000 + '\\nx: x x | \"a\" |')",
    "exponential": "StructuredOutputs(regex='(a|b)*a(a|b){2000}')",
    "repeated": "StructuredOutputs(regex='(((a{1000}){1000}){1000}){1000}')",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_forms_end_within_time_and_memory(kind: str) -> None:
    """In a process of its own: what overflows the stack would end this one."""
    code = f"""
import re
from pathlib import Path
from core.errors import InvalidRequest
from core.structured.grammar import check
from core.types import StructuredOutputs
try:
    check({HOSTILE[kind]})
except InvalidRequest:
    pass
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512


def test_torch_is_not_needed() -> None:
    code = "import sys, core.structured.guidance\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
