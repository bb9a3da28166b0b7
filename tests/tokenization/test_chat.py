from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from vocabularies import byte_level, demo_file

from core.errors import InvalidRequest, TokenizerError
from core.tokenization import ChatTemplate, Tokenizer
from core.weights.gguf.header import read_gguf_metadata

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>' ~ call.function.name ~ ' ' ~ call.function.arguments | tojson ~ '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if not date is defined %}{%- set date = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'ping' %}{% continue %}{% endif %}
    {%- generation %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(count=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (ns.count % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "<b>é</b>", "parameters": {"a": [1, None]}}}
]
USER = {"role": "user", "content": "Hi <b>&amp;</b> 你好 "}
ANSWER = {"role": "assistant", "content": " Hello  "}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "é"}}}]}
SYSTEM = {"role": "system", "content": "  Be brief.\n"}
SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
REFERENCE: Any = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend, **SPECIAL)  # type: ignore[no-untyped-call]

CHATS: list[list[dict[str, Any]]] = [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER]]


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate(template).render(messages, special_tokens=SPECIAL, **options)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MISTRAL])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_same_text_as_transformers(
    template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    for options in (
        {"add_generation_prompt": True, "enable_thinking": False, "date": "1 Jan 2030"},
        {"add_generation_prompt": False, "continue_final_message": True},
    ):
        expected = REFERENCE.apply_chat_template(
            messages, chat_template=template, tools=tools, tokenize=False, **options
        )
        assert render(template, messages, tools=tools, **options) == expected


def test_null_content_is_left_out_like_in_transformers() -> None:
    messages: list[dict[str, Any]] = [USER, CALL, {"role": "tool", "content": "1"}]
    expected = REFERENCE.apply_chat_template(messages, chat_template=CHATML, tokenize=False, add_generation_prompt=True)
    assert render(CHATML, messages) == expected
    assert CALL["content"] is None


def test_the_demo_models_template(demo: Tokenizer) -> None:
    assert demo.chat_template is not None
    template = str(read_gguf_metadata(demo_file())["tokenizer.chat_template"])
    for messages in CHATS:
        expected = REFERENCE.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert demo.apply_chat_template(messages) == expected


def test_a_template_may_refuse_the_messages() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render(MISTRAL, [USER, USER])
    assert caught.value.param == "messages"


def test_a_malformed_template_is_named_with_its_line() -> None:
    with pytest.raises(TokenizerError, match=r"model\.jinja, line 2"):
        ChatTemplate("{{ x }}\n{% if %}", source="model.jinja")


@pytest.mark.parametrize(
    "messages",
    [[], "hi", [1], [{"content": "no role"}], [{"role": "user", "content": {1, 2}}], [{"role": "user", "content": 5}]],
)
def test_messages_that_cannot_be_rendered_are_the_clients_fault(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(CHATML.replace("is string", "is defined"), messages)
    assert caught.value.param == "messages"


def test_deeply_nested_messages_are_refused() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested"):
        render(CHATML, [{"role": "user", "content": deep}])


def test_named_templates() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "with tools"})
    assert template.render([USER], special_tokens={}) == "plain"
    assert template.render([USER], special_tokens={}, tools=TOOLS) == "with tools"
    with pytest.raises(TokenizerError, match="default"):
        ChatTemplate({"rag": "x"}).render([USER], special_tokens={})


def test_continuing_needs_a_text_that_the_template_keeps() -> None:
    options = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(InvalidRequest, match="no text to continue"):
        render(CHATML, [CALL], **options)
    with pytest.raises(InvalidRequest, match="leaves out"):
        render("nothing", [ANSWER], **options)
    with pytest.raises(InvalidRequest, match="add_generation_prompt"):
        render(CHATML, [ANSWER], continue_final_message=True)


def test_clients_may_set_json_variables() -> None:
    for name in ("bos_token", "enable_thinking"):
        assert render(f"{{{{ {name} }}}}", [USER], **{name: "mine"}) == "mine"
    with pytest.raises(InvalidRequest, match="is not a JSON type"):
        render("x", [USER], key=object())


def test_threads_share_a_template() -> None:
    template = ChatTemplate(CHATML)
    expected = template.render([USER] * 50, special_tokens=SPECIAL)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(template.render([USER] * 50, special_tokens=SPECIAL)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


@given(content=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_content_passes_unchanged(content: str) -> None:
    assert content in render(CHATML, [{"role": "user", "content": content}])
