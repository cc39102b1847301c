"""Rendered chats against transformers' apply_chat_template, on every template and chat."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from chat_templates import CHATS, TEMPLATES, TOOLS

from crumb.errors import CheckpointError, UsageError
from crumb.tokenizer.chat_template import ChatTemplate

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def render_reference(source: str, chat: list[dict[str, Any]], **given: Any) -> str | None:
    """None when the template refuses the chat, or fails on it."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)
    tokenizer.chat_template = source
    try:
        rendered: str = tokenizer.apply_chat_template(chat, tokenize=False, **given)
    except jinja2.TemplateError:
        return None
    return rendered


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_rendered_as_transformers_does(name: str, chat: str) -> None:
    template = ChatTemplate({"default": TEMPLATES[name]}, TOKENS)
    refused = 0
    for add_generation_prompt in (False, True):
        for tools in (None, TOOLS):
            for variables in ({}, {"enable_thinking": False, "reasoning_effort": "high"}):
                expected = render_reference(
                    TEMPLATES[name],
                    CHATS[chat],
                    add_generation_prompt=add_generation_prompt,
                    tools=tools,
                    **variables,
                )
                if expected is None:
                    refused += 1
                    with pytest.raises((UsageError, CheckpointError)):
                        template.render(CHATS[chat])
                    continue
                assert expected == template.render(
                    CHATS[chat],
                    add_generation_prompt=add_generation_prompt,
                    tools=tools,
                    variables=variables,
                )
    # These have roles that do not take turns, which this one cannot write.
    assert refused == (8 if name == "brackets" and chat in ("a call", "results") else 0)


def test_json_and_named_templates_are_chosen_as_transformers_does() -> None:
    named = {"default": "plain", "tool_use": "{{ tools | tojson(indent=1) }}"}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)
    tokenizer.chat_template = named
    chat = CHATS["one question"]
    for tools in (None, [], TOOLS):
        expected = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
        assert ChatTemplate(named, TOKENS).render(chat, tools=tools) == expected
