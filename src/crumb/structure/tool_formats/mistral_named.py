"""Mistral from version 11 of its tokenizer on: a name and an object behind a mark for each call.

[TOOL_CALLS]f[ARGS]{...}[TOOL_CALLS]g[ARGS]{...}
Small 3.2 has [CALL_ID] and an id between the name and [ARGS]; some leave [ARGS] out.
"""

from __future__ import annotations

from collections.abc import Sequence

from crumb.structure.json_calls import read_value
from crumb.structure.reader import END, Reading, ReplyPieces, TextReader
from crumb.structure.tool import Tool
from crumb.structure.tool_format import (
    MOST_CALLS,
    Mark,
    ToolFormat,
    call_rules,
    literal,
    read_between,
)
from crumb.structure.tool_formats.mistral import OPEN, nine_letters

ARGUMENTS, ID = "[ARGS]", "[CALL_ID]"
LONGEST_HEAD = 300
"""Characters before the arguments."""


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Content and calls."""
    names = [tool.name for tool in tools]

    def call(mark: str) -> Reading[bool]:
        del mark
        reader.record()
        head = ""
        while (character := (yield from reader.peek())) not in (END, "{"):
            head += yield from reader.next()
            if len(head) > LONGEST_HEAD:
                break
        name, _, id = head.strip().removesuffix(ARGUMENTS).partition(ID)
        if character != "{" or name.strip() not in names:
            reader.rewind()
            return False
        reader.forget()
        writer.call(name.strip(), id.strip() or None)
        yield from read_value(reader, writer.arguments)
        return True

    return read_between(reader, writer, (OPEN,), call)


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """One call, or one and more."""

    def write(tool: Tool, rule: str) -> str:
        return f"{mark(OPEN)} {literal(tool.name)} {mark(ARGUMENTS)} {rule}"

    most = MOST_CALLS if several else 1
    return f"start: call{{1,{most}}}\n{call_rules(tools, write)}"


FORMAT = ToolFormat(
    name="mistral-named",
    order=20,
    recognises=lambda template: OPEN in template and ARGUMENTS in template,
    marks=(OPEN, ARGUMENTS, ID),
    read=read,
    grammar=grammar,
    call_id=nine_letters,
    is_id=lambda id: len(id) == 9 and id.isalnum(),
)
