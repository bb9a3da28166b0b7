"""Who is let in: keys, administrators' keys, pages of other origins, the path behind a proxy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plain_http import assert_refused, post, send

from core.errors import ConfigError
from core.server.keys import KeyRing
from core.server.options import ServerOptions

Serve = Callable[..., Any]
SAY = {"prompt": "say", "max_tokens": 2}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- keys ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(serve: Serve) -> str:
    return str(serve(ServerOptions(api_key=("one", "two"), admin_key=("root",))).url)


def test_every_route_but_the_open_ones_wants_a_key(guarded: str) -> None:
    assert send(guarded, "GET", "/")[0] == 401
    endpoints = send(guarded, "GET", "/", None, bearer("one"))[2]["endpoints"]
    open_routes = {path for path in endpoints if "{" not in path and send(guarded, "GET", path)[0] not in (401, 403)}
    assert open_routes == {"/livez", "/readyz", "/ping"}
    assert send(guarded, "GET", "/no/such/route")[0] == 401
    assert send(guarded, "GET", "/livez", None, bearer("wrong"))[0] == 200


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("Bearer one", 200),
        ("bearer two", 200),
        ("Bearer root", 200),
        ("Bearer three", 401),
        ("Bearer", 401),
        ("one", 401),
        ("Basic one", 401),
        ("Bearer one two", 401),
        ("Bearer \xff\xfe", 401),
    ],
)
def test_keys_are_bearer_tokens(guarded: str, value: str, status: int) -> None:
    found, headers, _ = send(guarded, "GET", "/v1/models", None, {"Authorization": value})
    assert found == status and ("WWW-Authenticate" in headers) == (status == 401)


def test_metrics_can_be_open(serve: Serve, guarded: str) -> None:
    assert send(guarded, "GET", "/metrics")[0] == 401
    url = serve(ServerOptions(api_key=("k",), metrics_auth=False)).url
    assert send(url, "GET", "/v1/models")[0] == 401
    with pytest.raises(msgspec.DecodeError):  # what it answers is Prometheus' text
        send(url, "GET", "/metrics")


def test_administrators_routes_want_their_key(serve: Serve) -> None:
    server = serve(ServerOptions(api_key=("one",), admin_key=("root",)))
    for key, status in (("one", 403), ("wrong", 403), ("root", 200)):
        assert send(server.url, "POST", "/reset_prefix_cache", b"", bearer(key))[0] == status
    assert server.engine.resets == 1
    server.engine.resets_cache = False
    assert send(server.url, "POST", "/reset_prefix_cache", b"", bearer("root"))[::2] == (409, {"reset": False})


def test_without_an_administrators_key_their_routes_are_closed_and_the_others_open(server: Any) -> None:
    answer = send(server.url, "POST", "/reset_prefix_cache", b"", bearer("any"))
    assert_refused(answer, 403, None, "--admin-key")
    assert server.engine.resets == 0


def test_keys_come_from_the_options_and_the_file_or_else_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORE_API_KEY", "from,environment")
    monkeypatch.setenv("CORE_ADMIN_KEY", "admin")
    file = tmp_path / "keys"
    file.write_text("# comment\n\nin-file \n")
    ring = KeyRing.of(ServerOptions(api_key=("given",), api_key_file=str(file)))
    assert [ring.find(key) for key in ("given", "in-file", "admin", "from", "# comment", "")] == [0, 1, 2, *[None] * 3]
    assert [ring.is_admin(number) for number in range(3)] == [False, False, True]
    ring = KeyRing.of(ServerOptions())
    assert [ring.find(key) for key in ("from", "environment")] == [0, 1]


def test_no_key_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sesame" not in repr(vars(KeyRing(["sesame"])))
    digests = [vars(KeyRing(["sesame"]))["_digests"] for _ in range(2)]
    assert digests[0] != digests[1], "the digest's own key has to be of one process"


@pytest.mark.parametrize("text", ["", "# nothing\n", "a b\n", "\x00\n"])
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match="--api-key-file"):
        KeyRing.of(ServerOptions(api_key_file=str(file)))


# --- pages of other origins ----------------------------------------------------------------------------------

PAGE = "https://page.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def test_an_allowed_page_may_ask_and_read(serve: Serve) -> None:
    url = serve(ServerOptions(api_key=("k",), allowed_origins=(f'["{PAGE}"]',), allow_credentials=True)).url
    status, headers, _ = send(url, "OPTIONS", "/v1/completions", None, PREFLIGHT)
    assert status == 204
    assert (headers["Access-Control-Allow-Methods"], headers["Access-Control-Allow-Headers"]) == (
        "POST",
        "authorization",
    )
    for body, given, expected in ((SAY, bearer("k"), 200), (SAY, {}, 401), ({**SAY, "stream": True}, {}, 401)):
        status, headers, _ = post(url, "/v1/completions", body, {"Origin": PAGE, **given})
        assert status == expected
        assert (headers["Access-Control-Allow-Origin"], headers["Vary"]) == (PAGE, "Origin")
        assert headers["Access-Control-Allow-Credentials"] == "true"


def test_another_page_may_not(serve: Serve) -> None:
    url = serve(ServerOptions(allowed_origins=(PAGE,), allowed_methods=("GET",), allowed_headers=("X-A",))).url
    other = {**PREFLIGHT, "Origin": "https://other.example"}
    status, headers, _ = send(url, "OPTIONS", "/v1/completions", None, other)
    assert status == 405 and "Access-Control-Allow-Origin" not in headers
    assert (
        "Access-Control-Allow-Origin" not in post(url, "/v1/completions", SAY, {"Origin": "https://other.example"})[1]
    )
    _, headers, _ = send(url, "OPTIONS", "/v1/completions", None, PREFLIGHT)
    assert (headers["Access-Control-Allow-Methods"], headers["Access-Control-Allow-Headers"]) == ("GET", "X-A")


def test_no_page_may_unless_the_operator_says_so(server: Any) -> None:
    assert not [
        name for name in post(server.url, "/v1/completions", SAY, {"Origin": PAGE})[1] if "Control-Allow" in name
    ]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"allowed_origins": ("*",), "allow_credentials": True}, "--allowed-origins"),
        ({"allowed_methods": ("GET",)}, "--allowed-origins"),
        ({"allowed_origins": ("[1]",)}, "--allowed-origins"),
        ({"allowed_origins": ("*",), "allowed_headers": ("[",)}, "--allowed-headers"),
    ],
)
def test_options_that_contradict_each_other(serve: Serve, options: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        serve(ServerOptions(**options))
    assert caught.value.option == option


# --- behind a proxy ------------------------------------------------------------------------------------------


def test_routes_are_found_with_and_without_the_root_path(serve: Serve) -> None:
    url = serve(ServerOptions(root_path="/llm", api_key=("k",), admin_key=("root",))).url
    for root in ("", "/llm"):
        assert send(url, "GET", f"{root}/livez")[0] == 200
        assert send(url, "GET", f"{root}/v1/models/fake/model", None, bearer("k"))[0] == 200
        assert send(url, "GET", f"{root}/v1/models")[0] == 401
        assert send(url, "POST", f"{root}/reset_prefix_cache", b"", bearer("k"))[0] == 403
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        assert post(url, f"{root}/v1/messages", body, {"x-api-key": "k"})[0] == 200
