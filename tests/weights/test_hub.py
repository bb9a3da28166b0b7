"""The hub, played by a local server: what is fetched, what is kept, and what each refusal says.

Every model is located in a process of its own, as `core serve` would: huggingface-hub reads its environment once,
at import.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import save

pytestmark = pytest.mark.slow  # a process for each look-up

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Repositories by name; `/api/models/…` describes them, `/REPO/resolve/COMMIT/FILE` serves their files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.revisions = {"main": COMMIT, "v2": OTHER_COMMIT}
        self.gated: set[str] = set()
        self.cut_once: set[str] = set()  # files whose first answer ends in the middle
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, method: str, part: str) -> list[dict[str, str]]:
        """The headers of each request whose path contains `part`."""
        return [headers for verb, path, headers in self.requests if verb == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree|/revision)?(?:/(.+))?", path):
            self._describe(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _commit(self, repo: str, revision: str) -> str | None:
        """The revision's commit, or None after a refusal has been sent."""
        commit = self.server.revisions.get(revision, revision)
        if repo not in self.server.repos:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repo in self.server.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif commit not in self.server.revisions.values():
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return commit
        return None

    def _describe(self, repo: str, kind: str | None, revision: str | None) -> None:
        commit = self._commit(repo, revision or "main")
        if commit is None:
            return
        files = self.server.repos[repo]
        if kind == "/tree":
            body: Any = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        else:
            body = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        data = self.server.repos[repo].get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("range", "bytes=0-"))[1])  # type: ignore[index]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.command == "GET" and name in self.server.cut_once
        self.server.cut_once -= {name} if cut else set()
        self._send(206 if start else 200, data[start:], headers, cut=cut)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "eos_token_id": 2}).encode()
WEIGHTS = save({"w": torch.arange(100_000, dtype=torch.float32)})


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    server.repos["org/tiny"] = {
        "config.json": CONFIG,
        "model.safetensors": WEIGHTS,
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ x }}",
        "pytorch_model.bin": b"pickle",
        "README.md": b"# tiny",
        "onnx/model.safetensors": b"x",
        "consolidated.safetensors": b"x",
    }
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


CODE = """
import json, sys
from core.errors import CoreError
from core.weights.source import locate, open_reader
options, models = json.loads(sys.argv[1]), sys.argv[2:]
for model in models:
    try:
        source = locate(model, **options)
        whole = source.has_weights and source.format == "huggingface"
        total = float(open_reader(source).read("w").sum()) if whole else None
        print(json.dumps({"path": str(source.path), "format": source.format, "sum": total}))
    except CoreError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def find_all(
    hub: Hub, tmp_path: Path, models: list[str], env: dict[str, str] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """What `locate` gives, or the error that it raises, for each model; in a fresh process, its cache in `tmp_path`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    settings = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(options), *models],
        env=clean | settings | (env or {}), capture_output=True, text=True, check=False, cwd=root, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) | {"stderr": done.stderr} for line in done.stdout.splitlines()]


def find(hub: Hub, tmp_path: Path, model: str, env: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """The same for one model."""
    return find_all(hub, tmp_path, [model], env, **options)[0]


OFFLINE = {"HF_HUB_OFFLINE": "1"}
TOTAL = float(torch.arange(100_000, dtype=torch.float32).numpy().sum())


def test_a_model_is_fetched_once_and_then_served_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    first = find(hub, tmp_path, "org/tiny")
    assert (first["format"], first["sum"]) == ("huggingface", TOTAL)
    names = {path.name for path in Path(first["path"]).rglob("*")}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert "%" in first["stderr"]  # a progress bar
    hub.requests.clear()
    assert find(hub, tmp_path, "org/tiny")["path"] == first["path"]
    assert not hub.asked_for("GET", "/resolve/")
    hub.requests.clear()
    assert find(hub, tmp_path, "org/tiny", OFFLINE)["sum"] == TOTAL
    assert hub.requests == []


def test_a_cut_connection_is_taken_up_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    # More than the 10 MiB that the library writes at a time: what it has not written it cannot go on from.
    weights = save({"w": torch.ones(6_000_000)})
    hub.repos["org/large"] = {"config.json": CONFIG, "model.safetensors": weights}
    hub.cut_once = {"model.safetensors"}
    assert find(hub, tmp_path, "org/large")["sum"] == 6e6
    first, second = hub.asked_for("GET", "/model.safetensors")
    assert "range" not in first
    assert re.fullmatch(r"bytes=[1-9]\d*-.*", second["range"])


def test_the_revision_is_passed_on(hub: Hub, tmp_path: Path) -> None:
    assert Path(find(hub, tmp_path, "org/tiny", revision="v2")["path"]).name == OTHER_COMMIT
    answer = find(hub, tmp_path, "org/tiny", revision="v3")
    assert answer["error"] == "ModelNotFound"
    assert answer["message"].startswith("org/tiny has no revision 'v3'")


def test_dummy_weights_need_no_download_of_the_real_ones(hub: Hub, tmp_path: Path) -> None:
    path = Path(find(hub, tmp_path, "org/tiny", weights=False)["path"])
    assert (path / "config.json").is_file()
    assert not list(path.glob("*.safetensors"))


def test_the_token_opens_a_gated_model(hub: Hub, tmp_path: Path) -> None:
    hub.gated = {"org/tiny"}
    answer = find(hub, tmp_path, "org/tiny")
    assert answer["error"] == "ModelNotFound"
    assert f"org/tiny is gated: accept its terms at {hub.url}/org/tiny, then set HF_TOKEN" in answer["message"]
    assert find(hub, tmp_path, "org/tiny", {"HF_TOKEN": TOKEN})["sum"] == TOTAL


def test_a_model_that_does_not_exist(hub: Hub, tmp_path: Path) -> None:
    answer = find(hub, tmp_path, "org/none")
    assert answer["error"] == "ModelNotFound"
    assert f"{hub.url} has no model 'org/none', or it is private" in answer["message"]


def test_offline_without_a_cached_copy(hub: Hub, tmp_path: Path) -> None:
    answer = find(hub, tmp_path, "org/tiny", OFFLINE)
    assert answer["error"] == "ModelNotFound"
    assert f"the cache {tmp_path / 'hub'}, and HF_HUB_OFFLINE is set" in answer["message"]
    assert hub.requests == []


def test_offline_with_half_a_copy(hub: Hub, tmp_path: Path) -> None:
    find(hub, tmp_path, "org/tiny", weights=False)
    answer = find(hub, tmp_path, "org/tiny", OFFLINE)
    assert answer["error"] == "ModelNotFound"
    assert "not wholly, in the cache" in answer["message"]


def test_no_server(hub: Hub, tmp_path: Path) -> None:
    answer = find(hub, tmp_path, "org/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert answer["error"] == "ModelNotFound"
    assert "http://127.0.0.1:9 cannot be reached" in answer["message"]


def test_pickles_are_neither_fetched_nor_read(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/old"] = {"config.json": CONFIG, "pytorch_model.bin": b"pickle"}
    answer = find(hub, tmp_path, "org/old")
    assert answer["error"] == "UnsupportedModel"
    assert "org/old has its weights only as pickle (pytorch_model.bin)" in answer["message"]
    assert not hub.asked_for("GET", "pytorch_model.bin")


def test_repositories_of_another_kind(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/gguf"] = {"README.md": b"", "tiny-q4.gguf": b"GGUF"}
    hub.repos["org/text"] = {"README.md": b""}
    hub.repos["org/bare"] = {"config.json": CONFIG}
    gguf, text, bare = find_all(hub, tmp_path, ["org/gguf", "org/text", "org/bare"])
    assert gguf["message"].endswith("name one of them: org/gguf/tiny-q4.gguf")
    assert "has no config.json" in text["message"]
    assert "holds no weights" in bare["message"]


def test_one_gguf_file_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/gguf"] = {"sub/q4.gguf": b"GGUF", "sub/q8.gguf": b"GGUF"}
    models = ["org/gguf/sub/q4.gguf", "org/gguf:sub/q4.gguf", "org/gguf/sub/q5.gguf"]
    slash, colon, missing = find_all(hub, tmp_path, models)
    assert slash["path"] == colon["path"]
    assert slash["format"] == "gguf"
    assert Path(slash["path"]).read_bytes() == b"GGUF"
    assert not hub.asked_for("GET", "q8.gguf")
    assert "does not have that file" in missing["message"]
