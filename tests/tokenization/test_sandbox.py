"""Hostile templates: each is refused or bounded, none reaches the interpreter."""

from __future__ import annotations

import pytest

from core.errors import InvalidRequest, TokenizerError
from core.tokenization import ChatTemplate, sandbox

DOUBLE = "{% set n = namespace(x='a' * 1000) %}{% for i in range(99) %}{% set n.x = n.x OP n.x %}{% endfor %}"


def render(template: str) -> str:
    return ChatTemplate(template).render([{"role": "user", "content": "hi"}], special_tokens={})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__['datetime'] }}",
        "{{ messages.append(1) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ('{0.__class__.__mro__}' ~ '').format(messages) }}",
    ],
)
def test_internals_are_out_of_reach(template: str) -> None:
    try:
        text = render(template)
    except (TokenizerError, InvalidRequest):
        return
    assert text == ""


def test_nothing_can_be_imported() -> None:
    with pytest.raises(InvalidRequest, match="no loader"):
        render("{% import 'os' as os %}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ range(10**9) | list }}",
        "{{ 'a' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' | format(10**9, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10**10) }}",
        "{{ (5).to_bytes(10**10, 'big') }}",
        "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
        "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
        "{{ ['a' * 10**7] * 10**5 }}",
        "{{ (['a' * 10**6] * 1000) | join }}",
        "{{ (['a' * 10**6] * 1000) | tojson }}",
        "{{ ''.join(['a' * 10**7] * 99) }}",
        DOUBLE.replace("OP", "~"),
        DOUBLE.replace("OP", "+"),
        "{% set b = 'a' * 10**7 %}{% set x %}{% for i in range(10**5) %}{{ b }}{% endfor %}{% endset %}",
        "{% for i in range(10**5) %}" + "x" * 1000 + "{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_nothing_grows_without_bound(template: str) -> None:
    with pytest.raises(TokenizerError, match="sandbox"):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}{% endif %}{% endmacro %}{{ f(40) }}",
    ],
)
def test_nothing_runs_for_ever(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.05)
    with pytest.raises(TokenizerError, match="seconds"):
        render(template)


def test_the_budget_is_for_one_rendering() -> None:
    template = ChatTemplate("{% for i in range(100) %}{{ 'a' * 100000 }}{% endfor %}")
    for _ in range(3):
        assert len(template.render([{"role": "user"}], special_tokens={})) == 10_000_000


def test_ordinary_use_is_not_refused() -> None:
    assert render(
        "{{ '%05.1f' % 2 }}{{ '{:>4}'.format('x') }}{{ 2 ** 10 }}{{ [1] * 3 }}{{ 'ab' | indent(2, true) }}"
    ) == ("002.0   x1024[1, 1, 1]  ab")
    assert (
        render("{% for a in [[1, 2], [3]] recursive %}{{ loop(a) if a is iterable else a ~ ';' }}{% endfor %}")
        == "1;2;3;"
    )
    assert render("{{ strftime_now('%Y') | int > 2000 }}") == "True"
