"""Markers in a text that comes in pieces."""

from __future__ import annotations


def begun(text: str, marker: str) -> int:
    """How many characters at the end of `text` are the beginning of `marker`, which may follow."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
