"""The reader of tutorials notices what is not as the page says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tutorial
from tutorial import Block, Command


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a", "a\nb\n", False),
        ("", "a\n", False),
        ("", "", True),
        ("…", "", True),
        ("…", "a\nb\n", True),
        ("…\nb", "a\nb  \n", True),
        ("…\nb\n…", "a\nb\nc\n", True),
        ("…\nb\n…", "a\nc\n", False),
        ("took … s", "took 1.5 s\n", True),
        ("took … s", "took\n1.5 s\n", False),
        ("a.c", "abc\n", False),
    ],
)
def test_output_is_compared(shown: str, printed: str, same: bool) -> None:
    assert tutorial.matches(shown, printed) is same


def test_a_terminal_is_commands_with_their_output() -> None:
    found = tutorial.commands("$ cat <<E\n> one\n> E\none\n$ true\n$ false\nerror: no\n")
    assert found == [Command("cat <<E\none\nE", "one"), Command("true", ""), Command("false", "error: no")]
    assert [command.fails for command in found] == [False, False, True]


def test_a_diff_changes_each_run_of_lines_once() -> None:
    assert tutorial.apply_diff(" a\n-b\n+c\n\n-x\n+y\n+z\n", "a\nb\nmore\nx\n") == "a\nc\nmore\ny\nz\n"
    for old in ("a\n", "a\nb\na\nb\n"):
        with pytest.raises(AssertionError, match="times in the file"):
            tutorial.apply_diff(" a\n-b\n+c\n", old)


def test_blocks_are_found_with_their_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('# T\n\n```\nfor the eye\n```\n\n```python title="a/b.py"\nx = 1\n```\n')
    assert tutorial.blocks(page) == [Block("python", "a/b.py", "x = 1\n", 7)]


@pytest.mark.parametrize(
    "terminal",
    [
        "$ echo one\ntwo\n",
        "$ exit 3\n",
        "$ echo error: no\nerror: no\n",
    ],
)
def test_what_the_page_says_otherwise_fails(terminal: str, tmp_path: Path) -> None:
    with tutorial.Reader(tmp_path, dict(os.environ)) as reader:
        reader.follow(Block("console", None, "$ echo one\none\n", 1))
        with pytest.raises(AssertionError, match="the block at line 7"):
            reader.follow(Block("console", None, terminal, 7))


def test_a_program_in_the_background_must_end_well(tmp_path: Path) -> None:
    for status in (0, 4):
        loop = f"trap 'exit {status}' TERM; touch ready; while true; do sleep 0.05; done"
        reader = tutorial.Reader(tmp_path / str(status), dict(os.environ))
        reader.directory.mkdir()
        reader.follow(Block("console", None, f'$ bash -c "{loop}" &\n$ until test -e ready; do sleep 0.05; done\n', 1))
        if status:
            with pytest.raises(AssertionError):
                reader.__exit__()
        else:
            reader.__exit__()
