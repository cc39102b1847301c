"""Thoughts, calls of tools and forms of answers over each protocol, whole and streamed.

The engine is made to write what a model of the Hermes kind would; a form is held to for real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import chat_model, live, served, until
from puppet_engine import Puppet

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}{# <think> </think> enable_thinking #}"
)
SAID = (
    "<think>\nHm, so.\n</think>\n\nLet me see.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"place": "Bergen"}}\n</tool_call>'
)
PLACES = ["Oslo", "Bergen"]
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
FUNCTION = {"name": "weather", "description": "The weather there.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
MESSAGES: Any = [{"role": "user", "content": "How is the weather?"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puppet]:
    path = chat_model(tmp_path_factory.mktemp("models") / "novella-tools")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    models = [served("novella", path, context=512, sequences=2)]
    with live(lambda: models) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield Puppet(running, models[0].model)


@pytest.fixture
def puppet(own_server: Puppet) -> Puppet:
    own_server.reset()
    return own_server


def test_a_chat_has_thoughts_content_and_calls(puppet: Puppet) -> None:
    puppet.will_say(SAID)
    answer = puppet.live.post(CHAT, messages=MESSAGES, tools=TOOLS)
    choice = answer["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["reasoning_content"] == message["reasoning"] == "Hm, so."
    assert message["content"] == "Let me see."
    for index, call in enumerate(message["tool_calls"]):
        assert call["type"] == "function"
        assert isinstance(call["function"]["arguments"], str)
        assert json.loads(call["function"]["arguments"]) == {"place": PLACES[index]}
    assert len({each["id"] for each in message["tool_calls"]}) == 2
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_streamed_chat_has_every_index_and_the_same_pieces(puppet: Puppet) -> None:
    puppet.will_say(SAID)
    events = puppet.live.events(CHAT, messages=MESSAGES, tools=TOOLS)[:-1]
    deltas = [each["choices"][0]["delta"] for each in events]
    assert "".join(each.get("content") or "" for each in deltas) == "Let me see."
    assert "".join(each.get("reasoning") or "" for each in deltas) == "Hm, so."
    calls: dict[int, str] = {}
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            calls[call["index"]] = calls.get(call["index"], "") + call["function"]["arguments"]
    assert [json.loads(each) for each in calls.values()] == [{"place": each} for each in PLACES]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_message_of_anthropic_has_blocks_of_each_kind(puppet: Puppet) -> None:
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    puppet.will_say(SAID)
    answer = puppet.live.post(
        "/v1/messages", model="claude-x", max_tokens=300, messages=MESSAGES, tools=tools
    )
    kinds = [each["type"] for each in answer["content"]]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert [each["input"]["place"] for each in answer["content"][2:]] == PLACES
    assert answer["stop_reason"] == "tool_use"


def test_a_response_has_items_of_each_kind(puppet: Puppet) -> None:
    puppet.will_say(SAID)
    tools = [{"type": "function", **FUNCTION}]
    answer = puppet.live.post("/v1/responses", input="How?", tools=tools)
    kinds = [each["type"] for each in answer["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert [json.loads(each["arguments"])["place"] for each in answer["output"][2:]] == PLACES
    assert answer["status"] == "completed"


def test_a_chat_of_ollama_has_thinking_and_whole_calls(puppet: Puppet) -> None:
    for stream in (False, True):
        puppet.will_say(SAID)
        body = {"model": "novella", "messages": MESSAGES, "tools": TOOLS, "stream": stream}
        text = puppet.live.http.post("/api/chat", json=body).text
        lines = [json.loads(line) for line in text.split("\n") if line]
        messages = [each["message"] for each in lines]
        assert "".join(each.get("thinking", "") for each in messages) == "Hm, so."
        calls = [call for each in messages for call in each.get("tool_calls", ())]
        assert [each["function"]["arguments"]["place"] for each in calls] == PLACES
        assert lines[-1]["done_reason"] == "stop"


def test_only_one_call_is_made_where_more_are_not_wanted(puppet: Puppet) -> None:
    puppet.will_say(SAID)
    asked = {"messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": False}
    choice = puppet.live.post(CHAT, **asked)["choices"][0]
    assert [each["function"]["name"] for each in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["finish_reason"] == "tool_calls"
    until(puppet.idle)


def test_a_call_that_was_cut_by_the_limit_ends_with_length(puppet: Puppet) -> None:
    puppet.will_say(SAID)
    most = len(puppet.forced) - 12
    choice = puppet.live.post(CHAT, messages=MESSAGES, tools=TOOLS, max_tokens=most)["choices"][0]
    assert choice["finish_reason"] == "length"


def test_a_call_that_a_model_makes_by_itself_is_valid_whole_and_streamed(puppet: Puppet) -> None:
    schema = {
        "type": "object",
        "properties": {"place": {"enum": PLACES}, "days": {"type": "integer", "maximum": 9}},
        "required": ["place", "days"],
    }
    tools = [{"type": "function", "function": FUNCTION | {"parameters": schema}}]
    wrong = '{"name": "rain", "arguments": {"place": "Paris", "days": "many", "why": 1}}'
    said = f"Let me see.\n<tool_call>\n{wrong}\n</tool_call>"
    asked = {"messages": MESSAGES, "tools": tools, "max_tokens": 300, "temperature": 0}
    puppet.will_say(said)
    answer = puppet.live.post(CHAT, **asked)
    message = answer["choices"][0]["message"]
    assert message["content"].startswith("Let me see.")
    call = message["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    arguments = json.loads(call["arguments"])
    assert arguments.keys() == {"place", "days"}
    assert arguments["place"] in PLACES
    assert isinstance(arguments["days"], int)
    puppet.reset()
    puppet.will_say(said)
    parts = [
        each["function"].get("arguments", "")
        for event in puppet.live.events(CHAT, **asked)
        if event != "[DONE]" and event["choices"]
        for each in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert len(parts) > 2
    assert json.loads("".join(parts)) == arguments


def test_tools_that_may_not_be_called_are_not_shown(puppet: Puppet) -> None:
    asked = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 1}
    hidden = puppet.live.post(CHAT, **asked, tool_choice="none")["usage"]["prompt_tokens"]
    shown = puppet.live.post(CHAT, **asked)["usage"]["prompt_tokens"]
    bare = puppet.live.post(CHAT, messages=MESSAGES, max_tokens=1)["usage"]["prompt_tokens"]
    assert hidden == bare < shown


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_that_is_required_is_made_by_any_model(puppet: Puppet, choice: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    answer = puppet.live.post(
        CHAT,
        messages=MESSAGES,
        tools=tools,
        tool_choice=choice,
        temperature=0,
        parallel_tool_calls=False,
        chat_template_kwargs={"enable_thinking": False},
    )
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["n"] in (1, 2)


FORM = {
    "type": "object",
    "properties": {"kind": {"enum": ["sea", "land"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": FORM}},
    },
    "/v1/responses": {
        "input": "How?",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": FORM}},
    },
    "/v1/messages": {
        "model": "claude-x",
        "max_tokens": 200,
        "messages": MESSAGES,
        "output_config": {"format": {"type": "json_schema", "schema": FORM}},
    },
    "/api/chat": {"model": "novella", "messages": MESSAGES, "format": FORM, "stream": False},
}


def text_of(path: str, answer: Any) -> str:
    if path == CHAT:
        return str(answer["choices"][0]["message"]["content"])
    if path == "/v1/responses":
        return str(answer["output"][-1]["content"][0]["text"])
    if path == "/v1/messages":
        return str(answer["content"][-1]["text"])
    return str(answer["message"]["content"])


@pytest.mark.parametrize("path", FORMS)
def test_a_form_is_held_to_in_every_protocol(puppet: Puppet, path: str) -> None:
    made = json.loads(text_of(path, puppet.live.post(path, **FORMS[path])))
    assert made["kind"] in ("sea", "land")
    assert isinstance(made["count"], int)
    assert set(made) == {"kind", "count"}


def test_a_schema_that_cannot_be_held_to_is_refused(puppet: Puppet) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strange"}}}
    status, answer = puppet.live.refused(CHAT, messages=MESSAGES, response_format=form)
    assert status == 400
    assert answer["error"]["message"]
