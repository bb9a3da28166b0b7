"""What a user may set of the HTTP server, beside the engine's own options. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

UnknownFields = Literal["auto", "ignore", "warn", "error"]


class ParserOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are read."""

    tool_call_parser: Annotated[
        str | None,
        Meta(
            description="how the model writes tool calls: hermes, llama3_json, mistral, pythonic, or a plugin's; default: tools are refused"
        ),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Meta(
            description="how the model marks its reasoning: deepseek_r1, qwen3, or a plugin's; default: it is content"
        ),
    ] = None


class ServerOptions(ParserOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the HTTP frontends."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8000
    uds: Annotated[str | None, Meta(description="listen on this Unix socket, mode 0600, and on no address")] = None
    root_path: Annotated[
        str,
        Meta(pattern=r"^(/[!-~]*[^/ ])?$", description="path under which a reverse proxy shows this server, like /llm"),
    ] = ""
    ssl_certfile: Annotated[str | None, Meta(description="certificate chain (PEM): serve HTTPS with it")] = None
    ssl_keyfile: Annotated[str | None, Meta(description="its private key (PEM); default: in the same file")] = None
    ssl_ca_certs: Annotated[
        str | None, Meta(description="authorities (PEM), one of which must have signed each client's certificate")
    ] = None
    api_key: Annotated[
        tuple[str, ...],
        Meta(description="key that requests must bear (repeatable); default: CORE_API_KEY, or none"),
    ] = ()
    api_key_file: Annotated[str | None, Meta(description="file of more keys, one a line")] = None
    admin_key: Annotated[
        tuple[str, ...],
        Meta(description="key for all routes and the administrators' (repeatable); default: CORE_ADMIN_KEY, or none"),
    ] = ()
    metrics_auth: Annotated[bool, Meta(description="/metrics wants a key too, where there are keys")] = True
    allowed_origins: Annotated[
        tuple[str, ...], Meta(description="origin whose pages may read answers, or * (repeatable, or a JSON list)")
    ] = ()
    allowed_methods: Annotated[
        tuple[str, ...], Meta(description="methods that such pages may use; default: all (repeatable, or a JSON list)")
    ] = ()
    allowed_headers: Annotated[
        tuple[str, ...], Meta(description="headers that they may send; default: all (repeatable, or a JSON list)")
    ] = ()
    allow_credentials: Annotated[bool, Meta(description="let such pages send cookies and certificates")] = False
    unknown_fields: Annotated[
        UnknownFields,
        Meta(description="unknown request fields; auto: refuse misspelt ones, ignore others and name them in a header"),
    ] = "auto"
    trust_request_chat_template: Annotated[
        bool, Meta(description="render conversations by a chat template that comes with the request")
    ] = False
    max_body_bytes: Annotated[int, Meta(ge=1, description="longest request body; longer ones get HTTP 413")] = 8 << 20
    max_stored_responses: Annotated[
        int, Meta(ge=0, description="answers of /v1/responses that a frontend keeps for `previous_response_id`")
    ] = 1024
    metrics_prefix: Annotated[
        str,
        Meta(pattern="^[a-zA-Z_:][a-zA-Z0-9_:]*$", description="of the metrics' names; vllm: for vLLM's dashboards"),
    ] = "core:"
    keepalive_timeout: Annotated[
        float,
        Meta(gt=0, description="seconds in which a connection must bring a whole request head, the first or the next"),
    ] = 75.0
    body_timeout: Annotated[float, Meta(gt=0, description="seconds in which a body must have come, else HTTP 408")] = (
        60.0
    )
    send_timeout: Annotated[
        float, Meta(gt=0, description="seconds for which a stream's reader may take nothing; then its request ends")
    ] = 120.0
    max_queued_tokens: Annotated[
        int,
        Meta(ge=0, description="prompt tokens waiting beyond which requests get HTTP 429; 0: no limit"),
    ] = 0
    max_concurrency_per_key: Annotated[
        int, Meta(ge=0, description="requests of one key that run at once, else HTTP 429; 0: no limit")
    ] = 0
    rate_limit_per_key: Annotated[
        int, Meta(ge=0, description="requests a minute that are taken of one key, else HTTP 429; 0: no limit")
    ] = 0
    otlp_traces_endpoint: Annotated[
        str | None,
        Meta(description="send a trace of each request there (OTLP over HTTP), like http://HOST:4318/v1/traces"),
    ] = None
    log_requests: Annotated[bool, Meta(description="log one line for each request; never its text")] = True
