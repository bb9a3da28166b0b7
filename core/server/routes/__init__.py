"""The routes, one module each; `ROUTES` is all of them."""

from __future__ import annotations

from core.server.routes import chat, completions, health, models

ROUTES = [*models.ROUTES, *completions.ROUTES, *chat.ROUTES, *health.ROUTES]
