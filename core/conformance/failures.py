"""How a check says that something is wrong, or is no matter of this platform."""

from __future__ import annotations

from collections.abc import Sequence


class Broken(AssertionError):
    """What a platform did against the contract: for which op, shape and type, in one line."""


class NotClaimed(Exception):
    """The platform does not claim what the check is about, and why that is fine."""


def expect(condition: object, message: str) -> None:
    """Raises Broken with `message` unless `condition` holds."""
    if not condition:
        raise Broken(message)


def expect_none(broken: Sequence[str]) -> None:
    """Raises Broken with the first complaint, and how many there were."""
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise Broken(broken[0] + more)
