"""Bodies and answers of the routes of models that pool: embeddings, pooling, classify, score, rerank.

Sources: OpenAI's API reference (Embeddings), vLLM's OpenAI-compatible server, and for /rerank Jina's and Cohere's API
references, whose fields it has.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest
from core.server.protocol import MAX_ANSWERS, PositiveInt, Priority, Request, RequestId, TokenId

Prompt = str | list[int]


class PoolingBody(Request, kw_only=True):
    """Fields that all of them share."""

    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = (
        None  # of a text the first are kept; -1: those that fit
    )
    use_activation: bool | None = None  # normalise embeddings, make scores probabilities; None: as the model wants it
    priority: Priority | None = None
    cache_salt: str | None = None
    request_id: RequestId | None = None
    deadline_ms: PositiveInt | None = None  # from arrival; then the answer is HTTP 408


# --- one vector for each input -------------------------------------------------------------------------------


class InputBody(PoolingBody, kw_only=True):
    """Texts, or their token ids: one, or a list."""

    input: str | list[str | TokenId | list[TokenId]]
    add_special_tokens: bool | None = None

    def prompts(self) -> list[Prompt]:
        """The inputs one by one. Raises InvalidRequest on an empty one, or a list of several kinds."""
        given: list[Any] = [self.input] if isinstance(self.input, str) else self.input
        if given and all(isinstance(item, int) for item in given):
            given = [given]
        if not given or not all(item for item in given if not isinstance(item, int)):
            raise InvalidRequest("input: it is empty; give at least one character or token", param="input")
        if len({type(item) for item in given}) > 1:
            raise InvalidRequest("input: a list holds either strings, or tokens, or lists of tokens", param="input")
        check_number(len(given), "input")
        return given


class EmbeddingRequest(InputBody, kw_only=True):
    """Body of POST /v1/embeddings and /pooling."""

    encoding_format: Literal["float", "base64"] | None = None  # base64: of float32, little-endian
    dimensions: int | None = None
    normalize: bool | None = None  # vLLM's older name for use_activation


class ClassifyRequest(InputBody, kw_only=True):
    """Body of POST /classify."""


class PoolingUsage(msgspec.Struct):
    """Token counts of one request, over all of its inputs."""

    prompt_tokens: int
    total_tokens: int


class PooledList(msgspec.Struct, kw_only=True):
    """What was made of each input or pair, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Any]
    usage: PoolingUsage


class Embedding(msgspec.Struct):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingResponse(PooledList):
    """Answer of POST /v1/embeddings."""

    data: list[Embedding]


class Pooled(msgspec.Struct):
    """What was pooled of one input."""

    object: Literal["pooling"]
    index: int
    data: list[float] | str


class PoolingResponse(PooledList):
    """Answer of POST /pooling."""

    data: list[Pooled]


class Class(msgspec.Struct):
    """How one input is classified: the likeliest label, and the probability of each."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassifyResponse(PooledList):
    """Answer of POST /classify."""

    data: list[Class]


# --- pairs of texts ------------------------------------------------------------------------------------------


class ScoreRequest(PoolingBody, kw_only=True):
    """Body of POST /score: each text of one side with its text of the other, or one with all."""

    text_1: str | list[str]
    text_2: str | list[str]


class Score(msgspec.Struct):
    """How well one pair fits."""

    object: Literal["score"]
    index: int
    score: float


class ScoreResponse(PooledList):
    """Answer of POST /score."""

    data: list[Score]


class RerankDocument(msgspec.Struct):
    """A document with its text."""

    text: str


class RerankRequest(PoolingBody, kw_only=True):
    """Body of POST /rerank: documents to be put in the order of what they have to do with the query."""

    query: str
    documents: list[str | RerankDocument]
    top_n: Annotated[int, Meta(ge=0)] | None = None  # how many of the best are told; None, 0: all
    return_documents: bool | None = None  # None: they are

    def texts(self) -> list[str]:
        """The documents' texts. Raises InvalidRequest where there is none, or there are too many."""
        texts = [each if isinstance(each, str) else each.text for each in self.documents]
        if not texts:
            raise InvalidRequest("documents: the list is empty; give at least one", param="documents")
        check_number(len(texts), "documents")
        return texts


class RerankResult(msgspec.Struct, omit_defaults=True):
    """One document: where it was in the request, and its score."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankResponse(msgspec.Struct):
    """Answer of POST /rerank, the best first."""

    id: str
    model: str
    usage: PoolingUsage
    results: list[RerankResult]


def check_number(count: int, field: str) -> None:
    """Raises InvalidRequest where one request asks for too much."""
    if count > MAX_ANSWERS:
        raise InvalidRequest(f"{field}: {count} are more than {MAX_ANSWERS} in one request", param=field)
