"""SmolLM2: a list of objects between marks, all calls of an answer in one.

<tool_call>[{"name": "f", "arguments": {...}}, ...]</tool_call>
An empty list says that no tool fits; it is no content.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from crumb.structure.tool_formats.hermes import CLOSE, OPEN
from crumb.structure.tool_formats.mistral import read_list


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Content and calls."""
    names = [tool.name for tool in tools]

    def calls(mark: str) -> Reading[bool]:
        del mark
        if not (yield from read_list(reader, writer, names)):
            return False
        yield from reader.skip_spaces()
        yield from reader.accept(CLOSE)
        return True

    return read_between(reader, writer, (OPEN,), calls)


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """A list of one call, or of one and more."""
    more = more_calls(several, '", "')
    rules = call_rules(tools, json_call)
    return f'start: {mark(OPEN)} "[" call {more} "]" {mark(CLOSE)}\n{rules}'


FORMAT = ToolFormat(
    name="smollm",
    order=40,
    recognises=lambda template: f"{OPEN}[" in template,
    marks=(OPEN, CLOSE),
    read=read,
    grammar=grammar,
    opens=lambda tools: (f"{OPEN}[{{",),  # an empty list is no call
)
