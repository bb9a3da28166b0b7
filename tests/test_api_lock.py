"""The contract is what tests/api.lock says it is; a change raises its version."""

from __future__ import annotations

import api_lock
import pytest

BASE = '''
class Platform(abc.ABC):
    limit: int = 1

    @abc.abstractmethod
    def plan(self, config: Config) -> Plan:
        """Text that may change."""

    def close(self) -> None: ...

    def _inside(self) -> None: ...

class Info(Struct, frozen=True):
    name: str

FEATURES = ("a", "b")

@hookspec(firstresult=True)
def probe(env: ProbeEnv) -> ProbeResult: ...
'''


def change(before: str, after: str) -> api_lock.Change:
    assert before in BASE
    old, new = (api_lock.describe("m", source) for source in (BASE, BASE.replace(before, after)))
    return api_lock.compare(old, new)


def test_the_contract_is_as_locked() -> None:
    locked, now = api_lock.read(api_lock.LOCK.read_text()), api_lock.current()
    assert not api_lock.problem(locked, now)
    assert locked == now, "run `make api-lock`: the version has been raised, the lock has not"


def test_every_public_module_is_there_and_described() -> None:
    _, lines = api_lock.current()
    for module in api_lock.PUBLIC:
        assert any(name.startswith(f"{module}.") for name in lines), module


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Text that may change."""', '"""Another."""'),
        ("def _inside(self) -> None: ...", "def _other(self, x: int) -> None: ..."),
    ],
)
def test_what_nobody_can_rely_on_may_change(before: str, after: str) -> None:
    assert change(before, after).least((1, 3)) == (1, 3)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("limit: int = 1", "limit: int = 1\n    more: int = 2"),
        ("def close", "def flush(self) -> None: ...\n\n    def close"),
        (
            "FEATURES",
            "class New(abc.ABC):\n    must: int\n\n    @abc.abstractmethod\n    def f(self) -> None: ...\n\nFEATURES",
        ),
        ("@hookspec", "def extra() -> None: ...\n\n@hookspec"),
        ("    name: str", "    name: str\n    note: str = ''"),
        ('("a", "b")', '("a", "b", "c")'),
    ],
)
def test_additions_that_ask_nothing_are_minor(before: str, after: str) -> None:
    assert change(before, after).least((1, 3)) == (1, 4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    def close(self) -> None: ...\n", ""),
        ("config: Config", "config: Config, extra: int = 0"),
        ("-> Plan", "-> None"),
        ("limit: int = 1", "limit: int = 2"),
        ("limit: int = 1", "limit: float = 1"),
        ("limit: int = 1", "limit: int"),
        ("    name: str", "    name: str\n    must: str"),
        ("def close", "@abc.abstractmethod\n    def must(self) -> None: ...\n\n    def close"),
        ("    @abc.abstractmethod\n", ""),
        ("frozen=True", "frozen=False"),
        ("firstresult=True", "firstresult=False"),
        ('("a", "b")', '("a",)'),
        ('("a", "b")', '("c", "a", "b")'),
        ('("a", "b")', '("b", "a", "c")'),
        ('("a", "b")', '("a", "b", *MORE)'),
        ('("a", "b")', '["a", "b", "c"]'),
    ],
)
def test_what_breaks_a_plugin_is_major(before: str, after: str) -> None:
    assert change(before, after).least((1, 3)) == (2, 0)


def test_an_option_may_take_more_values_not_fewer() -> None:
    less, more = "Literal['a', 'b'] = 'a'", "Literal['a', 'b', 'c'] = 'a'"
    assert api_lock.compare({"m.kind": less}, {"m.kind": more}).least((1, 3)) == (1, 4)
    assert api_lock.compare({"m.kind": more}, {"m.kind": less}).least((1, 3)) == (2, 0)
    assert api_lock.compare({"m.kind": less}, {"m.kind": more.replace("= 'a'", "= 'c'")}).least((1, 3)) == (2, 0)


def test_what_an_option_says_of_itself_may_change() -> None:
    line = """Annotated[int, Meta(ge=1, description='a b')] = 1"""
    for text in ("'c'", """"it's \\" (c)\"""", "''"):
        changed = line.replace("'a b'", text)
        assert api_lock.compare({"m.kind": line}, {"m.kind": changed}).least((1, 3)) == (1, 3)
        assert api_lock.compare({"m.kind": line}, {"m.kind": changed.replace("ge=1", "ge=0")}).breaking


def test_a_lock_survives_being_written() -> None:
    now = api_lock.current()
    assert api_lock.read(api_lock.write(*now)) == now


def test_the_lock_cannot_be_renewed_without_the_version() -> None:
    lines = api_lock.describe("m", BASE)
    added = {**lines, "m.new": "() -> None"}
    assert "set API_VERSION = (1, 4)" in api_lock.problem(((1, 3), lines), ((1, 3), added))
    assert not api_lock.problem(((1, 3), lines), ((1, 4), added))
    assert "set API_VERSION = (2, 0)" in api_lock.problem(((1, 3), added), ((1, 4), lines))
    assert not api_lock.problem(((1, 3), added), ((2, 0), lines))
