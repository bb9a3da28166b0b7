"""Requests without an SDK between: whatever body, with whatever headers, and the answer as it came."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

import msgspec


def post(url: str, route: str, body: bytes | dict, headers: dict | None = None) -> tuple[int, dict, dict]:
    """Status, headers and JSON of a request."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return send(url, "POST", route, data, headers)


def send(url: str, method: str, route: str, body: Any = None, headers: dict | None = None) -> tuple[int, dict, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        given = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, route, body, given, encode_chunked="Transfer-Encoding" in given)
        response = connection.getresponse()
        text = response.read()
        return response.status, dict(response.headers), msgspec.json.decode(text) if text else None
    finally:
        connection.close()


def assert_refused(answer: tuple[int, dict, dict], status: int, param: str | None, *words: str) -> None:
    assert answer[0] == status, answer
    assert set(answer[2]) == {"error"} and set(answer[2]["error"]) == {"message", "type", "param", "code"}
    error = answer[2]["error"]
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"], error
