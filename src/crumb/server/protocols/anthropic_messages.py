"""Anthropic's messages as chat templates take them.

In: system and messages of blocks. Out: messages of texts, calls and results, each result a message
of its own before what the user says, and whether the last one is the beginning of the answer.
A system message in the middle stays where it is if the template writes it there; else its text goes
to the user's text or the result before it, so that the beginning of the prompt stays as it was.
Refuses blocks that are no text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crumb.errors import UsageError
from crumb.server.turns import JOIN, add_message, add_system

BILLING = re.compile(r"^x-anthropic-billing-header:[^\n]*\n?", re.MULTILINE)
"""A line of Claude Code that differs in every request: with it nothing of a prompt is cached."""

ROLES = ("user", "assistant", "system")


def conversation(
    system: str | Sequence[Mapping[str, Any]] | None,
    messages: Sequence[Mapping[str, Any]],
    in_place: bool,
) -> tuple[list[dict[str, Any]], bool]:
    """Messages, and whether the last is to be continued. Raises: UsageError."""
    written: list[dict[str, Any]] = []
    head = system_text(system)
    if head:
        written.append({"role": "system", "content": head})
    if not messages:
        raise UsageError("at least one message is required", where="messages")
    for index, each in enumerate(messages):
        role, where = each.get("role"), f"messages.{index}"
        if role not in ROLES:
            raise UsageError(
                "no such role", where=where, expected=", ".join(ROLES), found=str(role)[:40]
            )
        blocks = blocks_of(each.get("content"), where)
        if role == "assistant":
            add_message(written, answer_of(blocks, where))
        elif role == "system":
            add_system(written, JOIN.join(_texts(blocks, where)), in_place)
        else:
            for message in turn_of(blocks, where):
                add_message(written, message)
    last = written[-1]
    return written, last["role"] == "assistant" and not last.get("tool_calls")


def system_text(system: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The system prompt, without what changes in every request. Raises: UsageError."""
    if system is None:
        return ""
    if isinstance(system, str):
        return BILLING.sub("", system)
    texts = _texts(system, "system")
    return JOIN.join(text for text in texts if not text.startswith("x-anthropic-billing-header:"))


def blocks_of(content: object, where: str) -> list[Mapping[str, Any]]:
    """Content as blocks. Raises: UsageError."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(each, Mapping) for each in content):
        return content
    raise UsageError("content is a text or a list of blocks", where=f"{where}.content")


def answer_of(blocks: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """What the assistant said, thought and called. Raises: UsageError."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind == "tool_use":
            arguments = block.get("input")
            function = {
                "name": str(block.get("name") or ""),
                "arguments": dict(arguments) if isinstance(arguments, Mapping) else {},
            }
            call = {"id": str(block.get("id") or ""), "type": "function", "function": function}
            calls.append(call)
        elif kind != "redacted_thinking":
            texts += _texts([block], where)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def turn_of(blocks: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Results of calls, then what the user says. Raises: UsageError."""
    results = [result_of(block, where) for block in blocks if block.get("type") == "tool_result"]
    texts = _texts([each for each in blocks if each.get("type") != "tool_result"], where)
    said = [{"role": "user", "content": JOIN.join(texts)}] if texts or not results else []
    return [*results, *said]


def result_of(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A tool's result; that it failed is said in its text, as chats have no word for it."""
    content = block.get("content")
    texts = [] if content is None else _texts(blocks_of(content, where), where)
    text = "\n".join(texts)
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": text}


def _texts(blocks: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    texts = []
    for block in blocks:
        text = block.get("text")
        if block.get("type", "text") != "text" or not isinstance(text, str):
            raise UsageError(
                "this model reads texts alone",
                where=where,
                found=f"a block of type {block.get('type')!r}"[:80],
            )
        texts.append(text)
    return texts
