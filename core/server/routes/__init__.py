"""The routes, one module each; `ROUTES` is all of them."""

from __future__ import annotations

from core.server.routes import (
    chat,
    completions,
    docs,
    embeddings,
    health,
    invocations,
    messages,
    models,
    responses,
    score,
    tokens,
)

ROUTES = [
    *models.ROUTES,
    *completions.ROUTES,
    *chat.ROUTES,
    *messages.ROUTES,
    *responses.ROUTES,
    *embeddings.ROUTES,
    *score.ROUTES,
    *tokens.ROUTES,
    *invocations.ROUTES,
    *health.ROUTES,
    *docs.ROUTES,
]
