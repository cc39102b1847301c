"""Hermes, Qwen 2.5 and 3, QwQ, SmolLM3: an object between marks for each call.

<tool_call>
{"name": "f", "arguments": {...}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Sequence

from crumb.structure.json_calls import read_call
from crumb.structure.reader import Reading, ReplyPieces, TextReader
from crumb.structure.tool import Tool
from crumb.structure.tool_format import (
    Mark,
    ToolFormat,
    call_rules,
    json_call,
    more_calls,
    read_between,
)

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Content and calls."""
    names = [tool.name for tool in tools]

    def call(mark: str) -> Reading[bool]:
        del mark
        if not (yield from read_call(reader, writer, names)):
            return False
        yield from reader.skip_spaces()
        yield from reader.accept(CLOSE)
        return True

    return read_between(reader, writer, (OPEN,), call)


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """One call, or one and more."""

    def write(tool: Tool, rule: str) -> str:
        return f'{mark(OPEN)} "\\n" {json_call(tool, rule)} "\\n" {mark(CLOSE)}'

    more = more_calls(several, '"\\n"')
    return f"start: call {more}\n{call_rules(tools, write)}"


FORMAT = ToolFormat(
    name="hermes",
    order=50,
    recognises=lambda template: OPEN in template,
    marks=(OPEN, CLOSE),
    read=read,
    grammar=grammar,
)
