"""What follows an answer of a given form token by token."""

from __future__ import annotations

import abc

import numpy as np
import numpy.typing as npt


class Matcher(abc.ABC):
    """How far one answer has come in its grammar. Used from one thread."""

    @property
    @abc.abstractmethod
    def failure(self) -> str | None:
        """Why the answer cannot go on, if it cannot: a bound was met, or the grammar allows nothing more."""

    @abc.abstractmethod
    def forbidden(self) -> npt.NDArray[np.bool_]:
        """[vocab]: the tokens that may not come next. EOS may exactly where the grammar accepts."""

    @abc.abstractmethod
    def advance(self, token_id: int) -> None:
        """Take the token that was chosen. After the end nothing changes any more."""

    def take_forced(self, most: int) -> list[int]:
        """Take what has to come next, at most so many tokens, as `advance` does; none where there is a choice."""
        del most
        return []
