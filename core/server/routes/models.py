"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from aiohttp import web

from core.server.reply import reply
from core.server.responses import Model, ModelList
from core.server.state import STATE, ServerState


def _card(state: ServerState) -> Model:
    config = state.client.config
    return Model(state.model, state.created, config.scheduler.max_model_len, config.model.name)


async def list_models(request: web.Request) -> web.Response:
    """The one model that is served."""
    body = ModelList([_card(request.app[STATE])])
    return reply(body)


async def show_model(request: web.Request) -> web.Response:
    """The model by name, which may hold slashes. Raises NotFound."""
    state = request.app[STATE]
    state.check_model(request.match_info["model"])
    return reply(_card(state))


ROUTES = [web.get("/v1/models", list_models), web.get("/v1/models/{model:.+}", show_model)]
