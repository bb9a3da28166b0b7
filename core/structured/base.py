"""What an answer must look like, and what follows it token by token."""

from __future__ import annotations

import abc
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core.errors import InvalidRequest


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The form of an answer, with vLLM's names; exactly one is given. Raises InvalidRequest otherwise.

    `json` is a JSON schema, as an object or its text. `strict`: a keyword of it that cannot be enforced is refused;
    else it is ignored, and the others hold. `grammar` is in llguidance's dialect of Lark.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        given = [name for name in ("json", "json_object", "regex", "choice", "grammar") if self._has(name)]
        if len(given) != 1:
            what = " and ".join(given) if given else "none of json, json_object, regex, choice and grammar"
            message = f"structured_outputs: exactly one form must be given, not {what}"
            raise InvalidRequest(message, param="structured_outputs")

    def _has(self, name: str) -> bool:
        return getattr(self, name) not in (None, False, ())

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return next(name for name in ("json", "json_object", "regex", "choice", "grammar") if self._has(name))


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
