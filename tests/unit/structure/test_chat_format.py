"""A chat template's source tells how its models call tools and think."""

from __future__ import annotations

from typing import Any

import pytest
from unit.structure.replies import FORMATS

from crumb.embedded import MODELS
from crumb.files.model_files import DirectoryFiles
from crumb.requests.chat_request import ChatRequest, ToolChoice
from crumb.requests.reply_format import ReplyFormat, ReplyKind
from crumb.structure.chat_format import ChatFormat
from crumb.structure.reasoning import recognise_reasoning
from crumb.structure.tool_formats.table import recognise_format
from crumb.structure.tool_history import arguments_mapping, prepared_messages
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}

SOURCES = {
    "hermes": "{{ '<tool_call>\\n' }}{{ call | tojson }}</tool_call>",
    "smollm": "{{ '<tool_call>[' }}",
    "llama": '<|start_header_id|>{{ \'{"name": "\' }}{{ \'"parameters": \' }}',
    "mistral": "[TOOL_CALLS] {{ calls }}",
    "mistral-named": "[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}",
    "glm": "<tool_call>{{ name }}\n<arg_key>{{ k }}</arg_key>",
    "qwen-coder": "<tool_call>\n<function={{ name }}>",
    "gemma": "<|tool_call>call:{{ name }}",
    "function-gemma": "<start_function_call>call:{{ name }}",
    "harmony": "<|start|>assistant<|channel|>analysis<|message|>",
    "generic": "<start_of_turn>user",
}
"""What a template of each format has in it."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DirectoryFiles(MODELS["novella-7m"]))


def test_every_format_is_recognised_by_a_template() -> None:
    assert set(SOURCES) == set(FORMATS)
    for name, source in SOURCES.items():
        assert recognise_format(source).name == name


def test_reasoning_is_recognised_by_its_marks() -> None:
    for source, close in {
        "{% if x %}</think>{% endif %}": "</think>",
        "[THINK]": "[/THINK]",
        "<|channel>thought": "<channel|>",
        SOURCES["harmony"]: "<|end|>",
    }.items():
        row = recognise_reasoning(source)
        assert row is not None
        assert row.close == close
    assert recognise_reasoning("{{ messages }}") is None


@pytest.mark.parametrize(
    ("source", "thinking", "variables"),
    [
        ("</think>{{ enable_thinking }}", False, {"enable_thinking": False}),
        ("</think>{{ thinking }}", True, {"thinking": True}),
        ("</think>", False, {}),
        ("</think>{{ enable_thinking }}", None, {}),
    ],
)
def test_a_template_is_told_whether_to_think_where_it_can_be(
    source: str, thinking: bool | None, variables: dict[str, Any]
) -> None:
    assert ChatFormat(source).variables(ChatRequest((USER,), thinking=thinking)) == variables


def test_where_a_template_cannot_be_told_thoughts_end_where_they_begin(
    tokenizer: Tokenizer,
) -> None:
    form = ChatFormat("</think>")
    plan = form.plan(ChatRequest((USER,), thinking=False), "Hi", tokenizer)
    assert plan.thinking is not None
    assert plan.thinking.most_tokens == 0
    plan = form.plan(ChatRequest((USER,), thinking_budget_tokens=9), "<think>\n", tokenizer)
    assert plan.thinking is not None
    assert (plan.thinking.begins_open, plan.thinking.most_tokens) == (True, 9)
    plan = form.plan(ChatRequest((USER,)), "<think>\n\n</think>\n\n", tokenizer)
    assert plan.thinking is None


def test_a_required_call_is_a_grammar_and_a_choice_of_none_hides_the_tools(
    tokenizer: Tokenizer,
) -> None:
    form = ChatFormat(SOURCES["hermes"])
    asked = ChatRequest((USER,), (TOOL,), ToolChoice.REQUIRED)
    plan = form.plan(asked, "", tokenizer)
    assert plan.form is not None
    assert plan.form.kind is ReplyKind.GRAMMAR
    assert "<tool_call>" in plan.marks
    hidden = ChatRequest((USER,), (TOOL,), ToolChoice.NONE)
    assert form.shown_tools(hidden) is None
    assert form.plan(hidden, "", tokenizer).tools == ()
    free = form.plan(ChatRequest((USER,), (TOOL,)), "", tokenizer)
    assert free.form is not None
    assert free.form.opens == ("<tool_call>",)
    assert form.plan(ChatRequest((USER,)), "", tokenizer).form is None


def test_a_form_in_channels_stands_in_the_last_one(tokenizer: Tokenizer) -> None:
    asked = ChatRequest((USER,), format=ReplyFormat(ReplyKind.REGEX, text="ab?"))
    plan = ChatFormat(SOURCES["harmony"]).plan(asked, "", tokenizer)
    assert plan.form is not None
    assert plan.form.text is not None
    assert '"final"' in plan.form.text
    assert "/ab?/" in plan.form.text


def test_arguments_of_earlier_calls_are_mappings_and_ids_are_the_familys() -> None:
    history = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    history += [{"role": "tool", "tool_call_id": "call_1", "content": "7"}]
    ready = prepared_messages(history, FORMATS["mistral"])
    (call,) = ready[0]["tool_calls"]
    assert call["function"]["arguments"] == {"x": 1}
    assert call["id"] == ready[1]["tool_call_id"]
    assert len(call["id"]) == 9
    assert history[0]["tool_calls"] == [CALL]
    assert prepared_messages(history, FORMATS["hermes"])[1]["tool_call_id"] == "call_1"
    assert arguments_mapping("{broken") == {"_raw": "{broken"}
    assert arguments_mapping("") == {}


def test_earlier_thoughts_lie_under_every_name_that_templates_read() -> None:
    (ready,) = prepared_messages(
        [{"role": "assistant", "content": "a", "reasoning": "hm"}], FORMATS["hermes"]
    )
    assert ready["reasoning_content"] == ready["thinking"] == "hm"


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    form = ChatFormat(SOURCES["generic"])
    messages = (
        {"role": "system", "content": "S"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "name": "f", "content": "7"},
    )
    asked = ChatRequest(messages, (TOOL,))
    ready = form.messages(asked)
    assert [each["role"] for each in ready] == ["system", "user", "assistant", "user"]
    assert '"name": "f"' in ready[1]["content"]
    assert ready[1]["content"].endswith("Hi")
    assert "<tool_call>" in ready[2]["content"]
    assert "7" in ready[3]["content"]
    assert form.shown_tools(asked) is None
