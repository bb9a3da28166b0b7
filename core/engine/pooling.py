"""From texts to requests for their vectors or scores: tokenized and held against what the model pools."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from core.config import Config
from core.engine.input import InputProcessor
from core.errors import InvalidRequest
from core.pooling import PoolerConfig
from core.tokenization import Tokenizer
from core.types import EngineRequest, PoolingActivation, PoolingParams, SamplingParams

#: Stands where a request that generates has its parameters: one result, in place of one token.
_ONE_RESULT = SamplingParams(max_tokens=1, temperature=0.0)


class PoolingInput:
    """Checks what can be checked before a request reaches the engine. Raises InvalidRequest for a model that generates."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.pooler: PoolerConfig = _pooler(config)
        self._max_model_len = config.scheduler.max_model_len
        self._tokenizer = tokenizer
        self._input = InputProcessor(config, tokenizer)

    def params(self, *, dimensions: int | None = None, activate: bool | None = None) -> PoolingParams:
        """What to ask of the model. `activate`: whether its activation is applied; None: yes, if it has one.

        Raises InvalidRequest for dimensions that its vectors cannot be cut to.
        """
        if dimensions is not None:
            self._check_dimensions(dimensions)
        embeds = self.pooler.task == "embed"
        activation: PoolingActivation = self.pooler.activation
        if activate is not None and embeds:
            activation = "normalize" if activate else "none"
        elif activate is False:
            activation = "none"
        return PoolingParams(activation=activation, dimensions=dimensions)

    def _check_dimensions(self, dimensions: int) -> None:
        known, size = self.pooler.dimensions, self.pooler.size
        if self.pooler.task != "embed" or known == ():
            raise InvalidRequest(
                "dimensions: this model's vectors are not made to be cut (Matryoshka); leave it out, or start the server "
                """with --hf-overrides '{"is_matryoshka": true}'""",
                param="dimensions",
            )
        if known is not None and dimensions not in known:
            listed = ", ".join(map(str, known))
            raise InvalidRequest(f"dimensions: {dimensions} is not one of {listed}", param="dimensions")
        if not 1 <= dimensions <= size:
            raise InvalidRequest(f"dimensions: {dimensions} is not in [1, {size}]", param="dimensions")

    def encode(
        self,
        prompt: str | Sequence[int],
        *,
        keep: int | None = None,
        add_special_tokens: bool = True,
        field: str = "input",
    ) -> list[int]:
        """Token ids of a prompt. `keep`: how many at most, of a text the first and of token ids the last; -1: what fits.

        Raises InvalidRequest.
        """
        keep = self._kept(keep)
        if keep is None or not isinstance(prompt, str):
            return self._input.encode(
                prompt, add_special_tokens=add_special_tokens, field=field, keep_last=keep, answers=False
            )
        token_ids = self._tokenizer.encode_head(prompt, keep, add_special_tokens=add_special_tokens, param=field)
        return self._input.encode(token_ids, field=field, answers=False)

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], *, keep: int | None = None, field: str = "input"
    ) -> Iterator[tuple[list[int], int | None]]:
        """Token ids of pairs of texts as a cross-encoder reads them, and where the second begins. Raises InvalidRequest."""
        for token_ids, start in self._tokenizer.encode_pairs(pairs, self._kept(keep), param=field):
            yield self._input.encode(token_ids, field=field, answers=False), start

    def _kept(self, keep: int | None) -> int | None:
        return self._max_model_len if keep == -1 else keep

    def request(
        self,
        token_ids: list[int],
        params: PoolingParams,
        *,
        request_id: str,
    ) -> EngineRequest:
        """What the engine is asked for."""
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=_ONE_RESULT,
            arrival_time=time.monotonic(),
            pooling=params,
        )


def _pooler(config: Config) -> PoolerConfig:
    pooler = config.model.pooler
    if pooler is None:
        raise InvalidRequest(
            f"model: {config.model.name!r} generates text; to get embeddings of it, start the server with --runner pooling",
            param="model",
            code="unsupported",
        )
    return pooler
