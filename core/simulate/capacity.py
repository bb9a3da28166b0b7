"""How many copies of the engine a trace needs for its latencies to stay within a service level objective."""

from __future__ import annotations

from collections.abc import Callable


def fewest(meets: Callable[[int], bool], guess: int, most: int) -> int | None:
    """The smallest n from 2 to `most` that meets, given that 1 does not and that more never does worse; None if none
    does. Doubles from `guess`, then halves the gap."""
    failing, trying = 1, max(2, min(guess, most))
    while not meets(trying):
        if trying >= most:
            return None
        failing, trying = trying, min(2 * trying, most)
    while trying - failing > 1:
        middle = (failing + trying) // 2
        if meets(middle):
            trying = middle
        else:
            failing = middle
    return trying
