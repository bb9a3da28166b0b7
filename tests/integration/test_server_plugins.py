"""Tools, and what plugins add to the server, in the processes of a real `core serve`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import distributions
import openai
import pytest
from real_server import CORE, ONE_THREAD, real_server

pytestmark = pytest.mark.slow

#: The demo model knows no tools, and goes on as the conversation began.
TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}

PLUGIN = """
from core.hookspecs import hookimpl
from core.platform import PluginInfo

@hookimpl
def plugin_info():
    return PluginInfo(name="acme", vendor="acme", version="1.0", api=(1, 0))

@hookimpl
def server_routes():
    return {"shout": "acme_objects:routes"}

@hookimpl
def metrics_sinks():
    return {"file": "acme_objects:Sink"}
"""
OBJECTS = """
import json, os
from aiohttp import web
from core.metrics.base import MetricsSink

def routes(context):
    async def shout(request):
        generation = await context.generate(request, "Once upon a time", {"max_tokens": 4, "temperature": 0})
        text = "".join([delta.text async for delta in generation.deltas()])
        return web.json_response({"text": text.upper()})
    return [web.get("PATH", shout)]

class Sink(MetricsSink):
    def __init__(self, model, options):
        self.file = open(os.environ["ACME_FILE"], "a")
    def first_token(self, seconds): ...
    def next_token(self, seconds): ...
    def finished(self, choice):
        print(json.dumps([choice.request_id, choice.generated_tokens]), file=self.file)
    def close(self):
        print(json.dumps("closed"), file=self.file)
        self.file.close()
"""


def weather(city: str) -> list[dict[str, object]]:
    """A question, the call that it leads to, and the end of it."""
    arguments = json.dumps({"city": city})
    call = {"id": f"call_{city}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return [
        {"role": "user", "content": f"How is the weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call_{city}", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]


def test_a_model_calls_a_tool(demo_model: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    messages = [message for city in ("Paris", "Rome", "Madrid") for message in weather(city)] + weather("Berlin")[:1]
    options = ("--chat-template", str(template), "--tool-call-parser", "hermes", *ONE_THREAD)
    with (
        real_server(demo_model, *options) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        request = {"model": server.model, "messages": messages, "tools": [WEATHER], "temperature": 0, "max_tokens": 60}
        choice = client.chat.completions.create(**request).choices[0]
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Berlin"})
        with client.chat.completions.stream(**request) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert streamed.finish_reason == "tool_calls"
        assert streamed.message.tool_calls[0].function.arguments == call.function.arguments


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs the plugin for servers that this process starts."""

    def add(path: str) -> None:
        sources = {"acme_plugin": PLUGIN, "acme_objects": OBJECTS.replace("PATH", path)}
        distributions.install(tmp_path, "acme-server", {"core.plugins": {"acme": "acme_plugin"}}, sources)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.setenv("ACME_FILE", str(tmp_path / "told"))

    return add


def test_routes_and_sinks_of_a_plugin(demo_model: str, tmp_path: Path, install: Callable[[str], None]) -> None:
    install("/shout")
    with real_server(demo_model, *ONE_THREAD) as server:
        _, _, answer = server.complete("Once upon a time", max_tokens=4, temperature=0)
        assert server.get("/shout") == (200, {"text": answer["choices"][0]["text"].upper()})
    first, second, last = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert first == [answer["id"], 4]
    assert second[0].startswith("acme-") and second[1] == 4
    assert last == "closed"


def test_a_route_of_the_cores_ends_the_start(demo_model: str, install: Callable[[str], None]) -> None:
    install("/metrics")
    ended = subprocess.run(
        [CORE, "serve", demo_model, "--port", "0", *ONE_THREAD], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "acme-server 1.0" in ended.stderr and "GET /metrics, which the core itself serves already" in ended.stderr
    assert "--plugins" in ended.stderr
