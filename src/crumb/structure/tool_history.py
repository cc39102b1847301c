"""Earlier calls, results and thoughts of a conversation, as chat templates take them.

In: messages as clients send them. Out: messages for a template: arguments are mappings, ids are of
the family's kind, thoughts lie under every name that templates read. Where the template knows no
tools, a message tells of them and calls and results are texts.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from crumb.structure.tool_format import ToolFormat
from crumb.structure.tool_formats.hermes import CLOSE, OPEN

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names of a message's thoughts: in what clients send, and in what templates read."""

LETTERS = string.ascii_letters + string.digits


def prepared_messages(
    messages: Sequence[Mapping[str, Any]],
    row: ToolFormat,
    told: Sequence[Mapping[str, Any]] = (),
) -> list[Mapping[str, Any]]:
    """Messages for a template; `told`: tools that it does not tell of itself."""
    ready: list[Mapping[str, Any]] = [_prepared(message, row) for message in messages]
    if row.in_words:
        ready = [_in_words(message) for message in ready]
        return _with_tools(ready, told) if told else ready
    return ready


def _prepared(message: Mapping[str, Any], row: ToolFormat) -> dict[str, Any]:
    ready = dict(message)
    thoughts = next((ready[name] for name in THOUGHTS if ready.get(name)), None)
    if thoughts is not None:
        ready |= dict.fromkeys(("reasoning_content", "thinking"), thoughts)
    calls = ready.get("tool_calls")
    if isinstance(calls, list | tuple):
        ready["tool_calls"] = [_call(call, row) for call in calls]
    if row.is_id is not None and isinstance(ready.get("tool_call_id"), str):
        ready["tool_call_id"] = _fitting_id(ready["tool_call_id"], row)
    return ready


def _call(call: Any, row: ToolFormat) -> Any:
    if not isinstance(call, Mapping):
        return call
    ready = dict(call)
    if isinstance(ready.get("id"), str):
        ready["id"] = _fitting_id(ready["id"], row)
    function = ready.get("function")
    if isinstance(function, Mapping):
        ready["function"] = {**function, "arguments": arguments_mapping(function.get("arguments"))}
    return ready


def arguments_mapping(arguments: Any) -> Any:
    """Arguments as a mapping; what is no JSON is one with the text under `_raw`."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return {"_raw": arguments}
    return value if isinstance(value, dict) else {"_raw": arguments}


def _fitting_id(id: str, row: ToolFormat) -> str:
    """An id that the family's template takes: the same for a call and its result."""
    if row.is_id is None or row.is_id(id):
        return id
    number = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8])
    letters = []
    for _ in range(9):
        number, place = divmod(number, len(LETTERS))
        letters.append(LETTERS[place])
    return "".join(letters)


def _in_words(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call or a result as a text."""
    content = message.get("content")
    if message.get("tool_calls"):
        calls = [each["function"] for each in message["tool_calls"]]
        written = [f"{OPEN}\n{json.dumps(each, ensure_ascii=False)}\n{CLOSE}" for each in calls]
        text = "\n".join([*([content] if isinstance(content, str) and content else []), *written])
        return {"role": message.get("role"), "content": text}
    if message.get("role") == "tool":
        name = message.get("name") or message.get("tool_name") or "the tool"
        return {"role": "user", "content": f"The result of {name}:\n{_text(content)}"}
    return message


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(each.get("text", "")) for each in parts if isinstance(each, Mapping))


def _with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The first message of the user begins with what the tools are."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    words = (
        f"These functions can be called:\n{described}\n"
        "To call one, answer with an object like this for each call, and nothing else:\n"
        f'{OPEN}\n{{"name": "the function\'s name", "arguments": {{}}}}\n{CLOSE}\n\n'
    )
    ready, told = [], False
    for message in messages:
        if message.get("role") == "user" and not told:
            message, told = {**message, "content": words + _text(message.get("content"))}, True
        ready.append(message)
    return ready
