"""POST /v1/embeddings, /pooling and /classify: a vector, or the probabilities of classes, for each input."""

from __future__ import annotations

from aiohttp import web

from core.engine.scoring import floats
from core.errors import InvalidRequest
from core.server.admission import read
from core.server.pooling import PooledAnswer, pooled, pooling_input
from core.server.pooling_protocol import (
    Class,
    ClassifyRequest,
    ClassifyResponse,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    Pooled,
    PoolingResponse,
)
from core.server.state import STATE


async def create_embeddings(request: web.Request) -> web.Response:
    """An embedding of each input."""
    body = await read(request, EmbeddingRequest)
    pooler = pooling_input(request.app[STATE]).pooler
    if pooler.task != "embed":
        message = "model: it classifies and has no embeddings; ask /classify, /score or /pooling"
        raise InvalidRequest(message, param="model", code="unsupported")
    found = await _pooled(request, body, "embd")
    return found.listed(EmbeddingResponse, (Embedding("embedding", *each) for each in found.told(body.encoding_format)))


async def create_pooling(request: web.Request) -> web.Response:
    """What the model makes of each input, be it an embedding or scores."""
    body = await read(request, EmbeddingRequest)
    found = await _pooled(request, body, "pool")
    return found.listed(PoolingResponse, (Pooled("pooling", *each) for each in found.told(body.encoding_format)))


async def classify(request: web.Request) -> web.Response:
    """The likeliest class of each input, and the probability of all."""
    body = await read(request, ClassifyRequest)
    pooler = pooling_input(request.app[STATE]).pooler
    if pooler.task != "classify":
        message = "model: it gives embeddings and classifies nothing; ask /v1/embeddings"
        raise InvalidRequest(message, param="model", code="unsupported")
    found = await pooled(request, body, prefix="classify", activate=body.use_activation)
    return found.listed(
        ClassifyResponse, (_class(index, floats(vector), pooler.labels) for index, vector in enumerate(found.vectors))
    )


def _class(index: int, probs: list[float], labels: tuple[str, ...]) -> Class:
    return Class(index, labels[probs.index(max(probs))] if labels else None, probs, len(probs))


async def _pooled(request: web.Request, body: EmbeddingRequest, prefix: str) -> PooledAnswer:
    activate = body.normalize if body.use_activation is None else body.use_activation
    return await pooled(request, body, prefix=prefix, dimensions=body.dimensions, activate=activate)


ROUTES = [
    web.post("/v1/embeddings", create_embeddings),
    web.post("/pooling", create_pooling),
    web.post("/classify", classify),
]
