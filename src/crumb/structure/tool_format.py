"""The row of a tool format: how a family of models writes calls, and how a call is forced.

In: a row's fields, from its file in tool_formats/. Out: what reads a reply, a grammar in
llguidance's Lark, the name and arguments of a call as the family's template reads them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crumb.structure.reader import END, Reading, ReplyPieces, TextReader, Trimmed
from crumb.structure.tool import Tool

WHITE_SPACE = r"(\x20|\x0A\x20{0,8})?"
"""Between the parts of JSON: a grammar that allows any would let a model write it for ever."""

MOST_CALLS = 8
"""In one answer that must call: a small model may never come to an end by itself."""

Mark = Callable[[str], str]
"""A text as a grammar writes it: a special token of the model where there is one."""


def more_calls(several: bool, between: str) -> str:
    """What may follow the first call in a grammar; `between` stands before each, as a literal."""
    return f"({between} call){{0,{MOST_CALLS - 1}}}" if several else ""


def call_id() -> str:
    """A name for a call that no other has."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls of tools."""

    name: str
    order: int  # of recognition: the most particular first
    recognises: Callable[[str], bool]  # a chat template's source
    marks: tuple[str, ...]  # special tokens that the text must show
    read: Callable[[TextReader, ReplyPieces, Sequence[Tool]], Reading[None]]  # content and calls
    grammar: Callable[[Sequence[Tool], bool, Mark], str]  # tools, several calls, marks
    call_id: Callable[[], str] = call_id
    is_id: Callable[[str], bool] | None = None  # whether templates take such an id; None: any
    in_words: bool = False  # the template knows no tools: a message tells of them
    opens: Callable[[Sequence[Tool]], tuple[str, ...]] | None = None  # None: the first mark

    def openings(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """Texts that open a call for certain: what follows is held to the grammar."""
        return self.marks[:1] if self.opens is None else self.opens(tools)


def read_between(
    reader: TextReader,
    writer: ReplyPieces,
    marks: tuple[str, ...],
    read: Callable[[str], Reading[bool]],
) -> Reading[None]:
    """Content, and calls behind their marks; a mark behind which no call comes is content.

    White space between content and a call belongs to neither.
    """
    content = Trimmed(writer.content)
    while True:
        mark = yield from reader.until(marks, content)
        if mark == END:
            content.flush()
            return
        if (yield from read(mark)):
            content = Trimmed(writer.content, begun=False)
        else:
            content(mark)


def literal(text: str) -> str:
    """A text in a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def schema_rule(schema: Mapping[str, Any], spaces: str | None = None) -> str:
    """JSON of a schema in a Lark grammar; `spaces`: a pattern, None for none but after , and :."""
    guidance: dict[str, Any] = {"whitespace_pattern": spaces}
    if spaces is None:
        guidance = {
            "whitespace_flexible": False,
            "item_separator": ", ",
            "key_separator": ": ",
        }
    return f"%json {json.dumps({**schema, 'x-guidance': guidance})}"


def call_rules(tools: Sequence[Tool], write: Callable[[Tool, str], str]) -> str:
    """Rules `call` and those below it; write(tool, rule) gives a call with its arguments' rule."""
    lines = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        lines.append(f"call_{index}: {write(tool, f'arguments_{index}')}")
        lines.append(f"arguments_{index}: {schema_rule(arguments_schema(tool))}")
    return "\n".join(lines)


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a call's arguments: an object, whatever the tool says of it."""
    schema = {"type": "object", **tool.parameters}
    schema.setdefault("additionalProperties", False)
    return schema


def json_call(tool: Tool, rule: str, key: str = "arguments") -> str:
    """A call as a JSON object in a Lark grammar."""
    begin = f'{{"name": {json.dumps(tool.name)}, "{key}": '
    return f"{literal(begin)} {rule} {literal('}')}"
