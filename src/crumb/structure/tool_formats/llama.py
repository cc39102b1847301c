"""Llama 3.1 to 3.3: objects with no mark at the beginning of the answer, joined by `; `.

{"name": "f", "parameters": {...}}
They may stand behind <|python_tag|>. Anything else in an answer is content.
"""

from __future__ import annotations

import json
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

OPEN = "<|python_tag|>"


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Calls, then content; or content, then calls behind their mark."""
    names = [tool.name for tool in tools]

    def calls(mark: str) -> Reading[bool]:
        del mark
        before = writer.calls
        while (yield from read_call(reader, writer, names)):
            reader.record()
            yield from reader.skip_spaces()
            if not (yield from reader.accept(";")):
                reader.forget()
                break
            reader.forget()
        return writer.calls > before

    yield from calls("")
    yield from read_between(reader, writer, (OPEN,), calls)


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """One call, or one and more."""
    del mark
    more = more_calls(several, '"; "')
    rules = call_rules(tools, lambda tool, rule: json_call(tool, rule, "parameters"))
    return f"start: call {more}\n{rules}"


FORMAT = ToolFormat(
    name="llama",
    order=70,
    recognises=lambda template: (
        '"parameters": ' in template
        and ("<|start_header_id|>" in template or "<|header_start|>" in template)
    ),
    marks=(OPEN,),
    read=read,
    grammar=grammar,
    opens=lambda tools: tuple(
        f'{{"name": {json.dumps(tool.name)}, "parameters": ' for tool in tools
    ),
)
