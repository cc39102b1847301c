"""Answers as models of each family write them, and the pieces they are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from crumb.pieces import (
    Content,
    Piece,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
)
from crumb.structure.formatted_reply import FormattedReply
from crumb.structure.reasoning import ROWS, ReasoningFormat
from crumb.structure.tool import Tool
from crumb.structure.tool_formats.table import tool_formats

THINK = next(row for row in ROWS if row.open == "<think>")
CHANNELS = next(row for row in ROWS if row.in_channels)

TOOLS = (
    Tool(
        "weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "kinds": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    ),
    Tool("time.now"),
)
FORMATS = {row.name: row for row in tool_formats()}

Call = tuple[str, dict[str, Any]]


def in_order() -> Callable[[], str]:
    """Ids that say which call they are of."""
    numbers = count()
    return lambda: f"id{next(numbers)}"


def parser_of(name: str, reasoning: ReasoningFormat | None = None, **more: Any) -> FormattedReply:
    """A parser for a family's answers."""
    if name == "harmony":
        reasoning = CHANNELS
    return FormattedReply(TOOLS, FORMATS[name], reasoning, make_id=in_order(), **more)


def _objects(calls: Sequence[Call], key: str = "arguments") -> list[str]:
    return [json.dumps({"name": name, key: arguments}) for name, arguments in calls]


def _hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in _objects(calls))


def _glm(calls: Sequence[Call]) -> str:
    def value(item: Any) -> str:
        return item if isinstance(item, str) else json.dumps(item)

    return "\n".join(
        f"<tool_call>{name}\n"
        + "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{value(item)}</arg_value>\n"
            for key, item in arguments.items()
        )
        + "</tool_call>"
        for name, arguments in calls
    )


def _qwen_coder(calls: Sequence[Call]) -> str:
    def value(item: Any) -> str:
        return item if isinstance(item, str) else json.dumps(item)

    return "\n".join(
        f"<tool_call>\n<function={name}>\n"
        + "".join(
            f"<parameter={key}>\n{value(item)}\n</parameter>\n" for key, item in arguments.items()
        )
        + "</function>\n</tool_call>"
        for name, arguments in calls
    )


def _gemma(open: str, close: str, quote: str) -> Callable[[Sequence[Call]], str]:
    def value(item: Any) -> str:
        if isinstance(item, str):
            return f"{quote}{item}{quote}"
        if isinstance(item, list):
            return f"[{','.join(map(value, item))}]"
        return json.dumps(item)

    def write(calls: Sequence[Call]) -> str:
        return "".join(
            f"{open}call:{name}{{{','.join(f'{k}:{value(v)}' for k, v in each.items())}}}{close}"
            for name, each in calls
        )

    return write


def _harmony(calls: Sequence[Call]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        f"{json.dumps(arguments)}<|call|>"
        for name, arguments in calls
    )


WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    "hermes": _hermes,
    "generic": _hermes,
    "smollm": lambda calls: f"<tool_call>[{', '.join(_objects(calls))}]</tool_call>",
    "mistral": lambda calls: f"[TOOL_CALLS][{', '.join(_objects(calls))}]",
    "mistral-named": lambda calls: "".join(
        f"[TOOL_CALLS]{name}[ARGS]{json.dumps(each)}" for name, each in calls
    ),
    "llama": lambda calls: "; ".join(_objects(calls, "parameters")),
    "glm": _glm,
    "qwen-coder": _qwen_coder,
    "gemma": _gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "function-gemma": _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "harmony": _harmony,
}
"""Format -> calls as its models write them."""


def calls_of(pieces: Sequence[Piece]) -> list[Call]:
    """The calls that pieces tell of."""
    names = {each.index: each.name for each in pieces if isinstance(each, ToolCallStart)}
    texts = dict.fromkeys(names, "")
    for each in pieces:
        if isinstance(each, ToolCallArguments):
            texts[each.index] += each.text
    return [(name, json.loads(texts[index])) for index, name in names.items()]


def content_of(pieces: Sequence[Piece]) -> str:
    """All content."""
    return "".join(each.text for each in pieces if isinstance(each, Content))


def reasoning_of(pieces: Sequence[Piece]) -> str:
    """All reasoning."""
    return "".join(each.text for each in pieces if isinstance(each, Reasoning))
