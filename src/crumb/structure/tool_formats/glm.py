"""GLM 4.5 and later: a name, then keys and bare values, each between marks.

<tool_call>f
<arg_key>k</arg_key>
<arg_value>v</arg_value>
</tool_call>
A value is a text as it is, or JSON; the tool's schema says which.
"""

from __future__ import annotations

from collections.abc import Sequence

from crumb.structure.reader import Reading, ReplyPieces, TextReader
from crumb.structure.tagged_calls import (
    Tags,
    read_tagged_arguments,
    tagged_rules,
    until_mark,
)
from crumb.structure.tool import Tool
from crumb.structure.tool_format import Mark, ToolFormat, more_calls, read_between
from crumb.structure.tool_formats.hermes import CLOSE, OPEN

KEY, VALUE = "<arg_key>", "<arg_value>"
TAGS = Tags(KEY, "</arg_key>", VALUE, "</arg_value>", CLOSE)


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Content and calls."""
    by_name = {tool.name: tool for tool in tools}

    def call(mark: str) -> Reading[bool]:
        del mark
        reader.record()
        name, end = yield from until_mark(reader, (KEY, CLOSE, "\n"))
        tool = by_name.get(name.strip())
        if tool is None or not end:
            reader.rewind()
            return False
        reader.forget()
        if end != "\n":
            reader.put_back(end)
        writer.call(tool.name)
        yield from read_tagged_arguments(reader, writer, tool, TAGS)
        return True

    return read_between(reader, writer, (OPEN,), call)


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """One call, or one and more."""
    rules = tagged_rules(tools, TAGS, mark, lambda tool: (f"{tool.name}\n", OPEN))
    more = more_calls(several, '"\\n"')
    return f"start: call {more}\n{rules}"


FORMAT = ToolFormat(
    name="glm",
    order=10,
    recognises=lambda template: KEY in template,
    marks=(OPEN, CLOSE, KEY, "</arg_key>", VALUE, "</arg_value>"),
    read=read,
    grammar=grammar,
)
