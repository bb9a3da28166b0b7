"""/openapi.json and /docs say what there is, and requests made from the document are answered or refused as it says."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from fuzz_api import fuzz
from jsonschema_rs import validator_for
from plain_http import post, send

from core.server.openapi import BODIES
from core.server.options import ServerOptions
from core.server.routes import ROUTES

SAY: dict[str, Any] = {"prompt": "say", "max_tokens": 2, "logprobs": 1}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "say"}], "max_tokens": 2}


def text_of(url: str, path: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


def test_every_route_is_in_the_document(server: Any) -> None:
    paths = send(server.url, "GET", "/openapi.json")[2]["paths"]
    routes = {(route.method.lower(), re.sub(r":[^}]*}", "}", route.path)) for route in ROUTES}
    assert routes == {(method, path) for path, methods in paths.items() for method in methods}
    assert {(method.lower(), path) for method, path in BODIES} <= routes
    assert all(operation["summary"] for methods in paths.values() for operation in methods.values())


def test_every_reference_leads_somewhere(server: Any) -> None:
    _, text = text_of(server.url, "/openapi.json")
    schemas = msgspec.json.decode(text)["components"]["schemas"]
    assert {name.rpartition("/")[2] for name in re.findall(r'"\$ref":"([^"]*)"', text)} <= schemas.keys()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", SAY),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}),
        ("/v1/messages", CHAT),
        ("/v1/responses", {"input": "say"}),
        ("/tokenize", {"prompt": "say"}),
        ("/detokenize", {"tokens": [5, 6]}),
        ("/v1/completions", {}),
        ("/v1/messages", {}),
    ],
)
def test_answers_are_what_the_document_says(server: Any, path: str, body: dict[str, Any]) -> None:
    document = send(server.url, "GET", "/openapi.json")[2]
    status, _, answer = post(server.url, path, body)
    assert status == (200 if body else 400), answer
    kind = document["paths"][path]["post"]["responses"]["200" if body else "default"]["content"]["application/json"]
    validator = validator_for({**kind["schema"], "components": document["components"]})
    validator.validate(answer)
    assert not validator.is_valid({"strange": 1})


def test_the_document_says_what_it_takes_to_be_let_in(serve: Callable[..., Any]) -> None:
    url = serve(ServerOptions(api_key=("k",), root_path="/llm")).url
    document = send(url, "GET", "/llm/openapi.json", None, {"Authorization": "Bearer k"})[2]
    assert document["security"] == [{"key": []}] and document["servers"] == [{"url": "/llm"}]
    assert not [path for path in document["paths"] if path.startswith("/llm")]


def test_the_page_for_people_needs_nothing_else(server: Any) -> None:
    response, text = text_of(server.url, "/docs")
    assert response.status == 200 and response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "/v1/chat/completions" in text and "temperature" in text
    assert not re.findall(r"<script|src=|https?://", text)
    anchors = set(re.findall(r"href='#([^']*)'", text))
    assert anchors and anchors <= set(re.findall(r"id='([^']*)'", text))


@pytest.mark.slow
def test_requests_made_from_the_document_are_answered_or_refused(serve: Callable[..., Any]) -> None:
    statuses = fuzz(serve().url, 300, start=0)
    assert statuses.total() >= 270
    generating = [
        f"POST {path}" for path in ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")
    ]
    assert all(statuses[path, 400] for path in generating), statuses
    # Most of what is made at random contradicts itself: not every route of so many fields has one that does not.
    assert sum(statuses[path, 200] for path in generating) >= 3, statuses
