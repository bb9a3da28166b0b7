"""POST /score and /rerank, and the versioned paths of the APIs that they come from."""

from __future__ import annotations

from aiohttp import web

from core.engine.scoring import text_pairs
from core.server.admission import read
from core.server.pooling import scored
from core.server.pooling_protocol import (
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Score,
    ScoreRequest,
    ScoreResponse,
    check_number,
)
from core.server.reply import reply


async def create_score(request: web.Request) -> web.Response:
    """How well the texts of each pair fit."""
    body = await read(request, ScoreRequest)
    pairs = text_pairs(body.text_1, body.text_2)
    check_number(len(pairs), "text_2")
    found, scores = await scored(request, body, pairs, prefix="score", field="text_2")
    return found.listed(ScoreResponse, (Score("score", index, score) for index, score in enumerate(scores)))


async def rerank(request: web.Request) -> web.Response:
    """Documents by what they have to do with a query, the best first."""
    body = await read(request, RerankRequest)
    texts = body.texts()
    pairs = text_pairs(body.query, texts)
    found, scores = await scored(request, body, pairs, prefix="rerank", field="documents")
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    shown = body.return_documents is not False
    results = [RerankResult(index, scores[index], RerankDocument(texts[index]) if shown else None) for index in best]
    return reply(RerankResponse(found.id, found.model, found.usage, results))


ROUTES = [
    *(web.post(path, create_score) for path in ("/score", "/v1/score")),
    *(web.post(path, rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
]
