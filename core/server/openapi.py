"""What the server offers, as OpenAPI 3.1: made of the routes and of the same types that read and write their bodies."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

import core
from core.server.errors import ErrorBody, MessageError
from core.server.messages_format import MessageBody, TokenCount
from core.server.messages_protocol import CountTokensRequest, MessagesRequest
from core.server.pooling_protocol import (
    ClassifyRequest,
    ClassifyResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    PoolingResponse,
    RerankRequest,
    RerankResponse,
    ScoreRequest,
    ScoreResponse,
)
from core.server.protocol import ChatRequest, CompletionRequest
from core.server.responses import ChatResponse, CompletionResponse, Model, ModelList
from core.server.responses_format import ResponseBody
from core.server.responses_protocol import ConversationRequest, ResponsesRequest
from core.server.tokens_protocol import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

_REF = "#/components/schemas/{name}"


@dataclass(frozen=True)
class Bodies:
    """The types of a route's request and answer. None: the route reads no body, or answers with what has no type."""

    request: Any = None
    answer: Any = None


#: By method and path. A route that is not here is listed without types.
BODIES: dict[tuple[str, str], Bodies] = {
    ("POST", "/v1/completions"): Bodies(CompletionRequest, CompletionResponse),
    ("POST", "/v1/chat/completions"): Bodies(ChatRequest, ChatResponse),
    ("POST", "/v1/messages"): Bodies(MessagesRequest, MessageBody),
    ("POST", "/v1/messages/count_tokens"): Bodies(CountTokensRequest, TokenCount),
    ("POST", "/v1/responses"): Bodies(ResponsesRequest, ResponseBody),
    ("POST", "/v1/responses/input_tokens"): Bodies(ConversationRequest),
    ("GET", "/v1/responses/{response_id}"): Bodies(answer=ResponseBody),
    ("POST", "/v1/responses/{response_id}/cancel"): Bodies(answer=ResponseBody),
    ("GET", "/v1/models"): Bodies(answer=ModelList),
    ("GET", "/v1/models/{model}"): Bodies(answer=Model),
    ("POST", "/v1/embeddings"): Bodies(EmbeddingRequest, EmbeddingResponse),
    ("POST", "/pooling"): Bodies(EmbeddingRequest, PoolingResponse),
    ("POST", "/classify"): Bodies(ClassifyRequest, ClassifyResponse),
    **{("POST", path): Bodies(ScoreRequest, ScoreResponse) for path in ("/score", "/v1/score")},
    **{("POST", path): Bodies(RerankRequest, RerankResponse) for path in ("/rerank", "/v1/rerank", "/v2/rerank")},
    ("POST", "/tokenize"): Bodies(TokenizeRequest, TokenizeResponse),
    ("POST", "/detokenize"): Bodies(DetokenizeRequest, DetokenizeResponse),
    # Or a completion, by the body's fields: one kind is told.
    ("POST", "/invocations"): Bodies(ChatRequest, ChatResponse),
}


def document(routes: Iterable[web.AbstractRoute], *, root_path: str, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of `routes`."""
    types = [kind for bodies in BODIES.values() for kind in (bodies.request, bodies.answer) if kind is not None]
    types = [*dict.fromkeys([*types, ErrorBody, MessageError])]
    references, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(types, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.resource is None or route.method == "HEAD":
            continue
        path = route.resource.canonical
        if not root_path or not path.startswith(f"{root_path}/"):
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schema_of)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "core", "version": core.__version__},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if needs_key:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _operation(route: web.AbstractRoute, path: str, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    bodies = BODIES.get((route.method, path), Bodies())
    error = MessageError if path.startswith("/v1/messages") else ErrorBody
    answer = {"application/json": {"schema": schema_of[bodies.answer]}} if bodies.answer is not None else {}
    if "stream" in getattr(bodies.request, "__struct_fields__", ()):
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "summary": (inspect.getdoc(route.handler) or path).splitlines()[0],
        "operationId": f"{route.method.lower()}{path.translate(str.maketrans('/{}', '___'))}",
        "responses": {
            "200": {"description": "the answer", **({"content": answer} if answer else {})},
            "default": {"description": "an error", "content": {"application/json": {"schema": schema_of[error]}}},
        },
    }
    if bodies.request is not None:
        content = {"application/json": {"schema": schema_of[bodies.request]}}
        operation["requestBody"] = {"required": True, "content": content}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    return operation
