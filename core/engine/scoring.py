"""Scores of pairs of texts: by a cross-encoder, which reads both at once, or by the cosine of two embeddings."""

from __future__ import annotations

import array
import math
import operator
import sys
from collections.abc import Callable, Sequence

import msgspec

from core.config import Config
from core.engine.pooling import PoolingInput
from core.errors import InvalidRequest, PlatformError
from core.tokenization import Tokenizer
from core.types import EngineRequest, RequestDelta

#: A query and a document.
Pair = tuple[str, str]


def text_pairs(queries: str | Sequence[str], documents: str | Sequence[str]) -> list[Pair]:
    """Each query with its document; one query goes with every document. Raises InvalidRequest for other numbers."""
    firsts = [queries] if isinstance(queries, str) else list(queries)
    seconds = [documents] if isinstance(documents, str) else list(documents)
    if not firsts or not seconds:
        raise InvalidRequest("there is no pair of texts; give at least one text on either side", param="text_1")
    if len(firsts) == 1:
        firsts *= len(seconds)
    if len(firsts) != len(seconds):
        raise InvalidRequest(
            f"{len(firsts)} texts cannot be paired with {len(seconds)}; give one, or as many", param="text_1"
        )
    return list(zip(firsts, seconds, strict=True))


class Scoring:
    """Scores pairs by whatever the model can. Raises InvalidRequest for one that can neither."""

    def __init__(
        self, config: Config, tokenizer: Tokenizer, *, keep: int | None = None, field: str = "documents"
    ) -> None:
        """`keep`: as of `PoolingInput.encode`. `field`: where the texts came from, for errors."""
        self._input = PoolingInput(config, tokenizer)
        self._keep = keep
        self._field = field
        pooler = self._input.pooler
        if pooler.task == "classify" and not pooler.is_cross_encoder:
            raise InvalidRequest(
                f"model: it sorts texts into {pooler.size} classes and scores no pairs; ask /classify", param="model"
            )

    def requests(
        self, pairs: Sequence[Pair], name: Callable[[int], str], *, activate: bool | None = None
    ) -> list[EngineRequest]:
        """What the engine is asked for: one for each pair, or one for each text that occurs."""
        params = self._input.params(activate=activate if self._input.pooler.is_cross_encoder else True)
        if self._input.pooler.is_cross_encoder:
            encoded = self._input.encode_pairs(pairs, keep=self._keep, field=self._field)
            asked = [(ids, msgspec.structs.replace(params, segment_start=start)) for ids, start in encoded]
        else:
            asked = [(self._input.encode(text, keep=self._keep, field=self._field), params) for text in _texts(pairs)]
        return [self._input.request(*each, request_id=name(index)) for index, each in enumerate(asked)]

    def scores(self, pairs: Sequence[Pair], vectors: Sequence[Sequence[float]]) -> list[float]:
        """A score for each pair, from what the requests gave."""
        if self._input.pooler.is_cross_encoder:
            return [vector[0] for vector in vectors]
        vector_by_text = dict(zip(_texts(pairs), vectors, strict=True))
        # The vectors have length one: their product is the cosine.
        return [math.fsum(map(operator.mul, vector_by_text[first], vector_by_text[second])) for first, second in pairs]


def _texts(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(text for pair in pairs for text in pair))


def vector_of(delta: RequestDelta) -> list[float]:
    """The numbers of a delta that pools. Raises PlatformError where the request ended without."""
    if delta.pooled is None:
        raise PlatformError(delta.error or f"a request ended with {delta.finish_reason!r} and gave no vector")
    return floats(delta.pooled)


def floats(pooled: bytes) -> list[float]:
    """A vector's numbers."""
    numbers = array.array("f", pooled)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
