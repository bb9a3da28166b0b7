"""What a user may set of the HTTP server, beside the engine's own options. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

UnknownFields = Literal["auto", "ignore", "warn", "error"]


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the HTTP frontends."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8000
    api_key: Annotated[
        tuple[str, ...],
        Meta(description="key that /v1 requests must bear (repeatable); default: CORE_API_KEY, or none"),
    ] = ()
    unknown_fields: Annotated[
        UnknownFields,
        Meta(description="unknown request fields; auto: refuse misspelt ones, ignore others and name them in a header"),
    ] = "auto"
    max_body_bytes: Annotated[int, Meta(ge=1, description="longest request body; longer ones get HTTP 413")] = 8 << 20
    max_stored_responses: Annotated[
        int, Meta(ge=0, description="answers of /v1/responses that a frontend keeps for `previous_response_id`")
    ] = 1024
    tool_call_parser: Annotated[
        str | None,
        Meta(
            description="how the model writes tool calls: hermes, llama3_json, or a plugin's; default: tools are refused"
        ),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Meta(
            description="how the model marks its reasoning: deepseek_r1, qwen3, or a plugin's; default: it is content"
        ),
    ] = None
    log_requests: Annotated[bool, Meta(description="log one line for each request; never its text")] = True
