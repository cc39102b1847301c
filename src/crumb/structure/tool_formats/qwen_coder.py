"""Qwen3-Coder, Qwen 3.5 and later: functions and parameters as tags with bare values.

<tool_call>
<function=f>
<parameter=x>
value
</parameter>
</function>
</tool_call>
One line break at each end of a value is the format's; texts of several lines are common.
"""

from __future__ import annotations

from collections.abc import Sequence

from crumb.structure.reader import Reading, ReplyPieces, TextReader
from crumb.structure.tagged_calls import Tags, read_tagged_arguments, tagged_rules, until_mark
from crumb.structure.tool import Tool
from crumb.structure.tool_format import Mark, ToolFormat, more_calls, read_between
from crumb.structure.tool_formats.hermes import CLOSE, OPEN

FUNCTION = "<function="
TAGS = Tags("<parameter=", ">", "\n", "</parameter>", "</function>", trims=True)


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Content and calls; some models leave the outer marks away."""
    by_name = {tool.name: tool for tool in tools}

    def call(mark: str) -> Reading[bool]:
        reader.record()
        yield from reader.skip_spaces()
        if mark != FUNCTION and not (yield from reader.accept(FUNCTION)):
            reader.rewind()
            return False
        name, end = yield from until_mark(reader, (">", "\n"))
        tool = by_name.get(name.strip())
        if tool is None or end != ">":
            reader.rewind()
            return False
        reader.forget()
        writer.call(tool.name)
        yield from read_tagged_arguments(reader, writer, tool, TAGS)
        yield from reader.skip_spaces()
        yield from reader.accept(CLOSE)
        return True

    return read_between(reader, writer, (OPEN, FUNCTION), call)


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """One call, or one and more."""
    rules = tagged_rules(
        tools, TAGS, mark, lambda tool: (f"\n{FUNCTION}{tool.name}>\n", OPEN), f"\n{CLOSE}"
    )
    more = more_calls(several, '"\\n"')
    return f"start: call {more}\n{rules}"


FORMAT = ToolFormat(
    name="qwen-coder",
    order=15,
    recognises=lambda template: FUNCTION in template,
    marks=(OPEN, CLOSE),
    read=read,
    grammar=grammar,
)
