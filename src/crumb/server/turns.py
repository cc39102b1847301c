"""Turns of a conversation as chat templates want them: neighbours of one side put together.

In: messages one after the other. Out: the same with one message for each turn; a system message in
the middle stays where the template writes it there, else it joins what came before it, so that the
beginning of the prompt never changes.
"""

from __future__ import annotations

from typing import Any

JOIN = "\n\n"


def add_message(written: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Append, or put neighbours of one side together; results of tools stay apart."""
    last = written[-1] if written else None
    if last is None or last["role"] != message["role"] or message["role"] == "tool":
        written.append(message)
        return
    last["content"] = joined(last["content"], message["content"])
    if message.get("tool_calls"):
        last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
    if message.get("reasoning_content"):
        last.setdefault("reasoning_content", message["reasoning_content"])


def add_system(written: list[dict[str, Any]], text: str, in_place: bool) -> None:
    """A system message where it stands, or at the end of what came before it."""
    if not text:
        return
    is_head = all(each["role"] == "system" for each in written)
    if is_head or in_place:
        add_message(written, {"role": "system", "content": text})
    elif written[-1]["role"] == "assistant":
        written.append({"role": "user", "content": text})
    else:
        written[-1]["content"] = joined(written[-1]["content"], text)


def joined(first: str, second: str) -> str:
    """Two texts with an empty line between them, where there are two."""
    return JOIN.join(part for part in (first, second) if part)
