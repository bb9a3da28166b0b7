"""/docs: the OpenAPI document as a page for people. It loads nothing, from here or elsewhere, and runs no script."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1rem 1rem}td,th{padding:.1rem .8rem .1rem 0;text-align:left;"
    "vertical-align:top}code{font-size:.9em}summary{cursor:pointer}b{display:inline-block;min-width:4rem}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}"
)


def page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    info, schemas = document["info"], document["components"]["schemas"]
    title = escape(f"{info['title']} {info['version']}")
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    types = "".join(_type(name, schema) for name, schema in sorted(schemas.items()))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f"<p>The same for programs: <a href=openapi.json>openapi.json</a></p>{operations}<h2>Types</h2>{types}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    request = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    answer = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
    parts = [("body", request), ("answer", answer)]
    shown = "".join(f"<br>{name}: {_named(schema)}" for name, schema in parts if schema is not None)
    summary = escape(operation["summary"])
    return f"<p><b>{method.upper()}</b> <code>{escape(path)}</code><br>{summary}{shown}</p>"


def _type(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{_named(kind)}<td>{'required' if field in required else ''}"
        for field, kind in schema.get("properties", {}).items()
    )
    summary = escape(schema.get("description", "").partition("\n")[0])
    return f"<details id='{escape(name)}'><summary><code>{escape(name)}</code> {summary}</summary><table>{rows}</table></details>"


def _named(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_named(each) for each in schema["anyOf"])
    if "enum" in schema:
        return escape(", ".join(map(repr, schema["enum"])))
    kind = escape(str(schema.get("type", "anything")))
    return f"{kind} of {_named(schema['items'])}" if isinstance(schema.get("items"), dict) else kind
