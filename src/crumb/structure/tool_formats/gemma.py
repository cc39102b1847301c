"""Gemma 4 and FunctionGemma: a name and an object of bare keys, texts between marks of their own.

<|tool_call>call:f{x:<|"|>text<|"|>,n:42}<tool_call|>
<start_function_call>call:f{x:<escape>text<escape>}<end_function_call>
Gemma 2 and 3 have no format: they are asked for JSON (generic.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crumb.structure.json_calls import read_value
from crumb.structure.reader import END, Reading, ReplyPieces, TextReader
from crumb.structure.tagged_calls import until_mark
from crumb.structure.tool import Tool
from crumb.structure.tool_format import (
    MOST_CALLS,
    Mark,
    ToolFormat,
    literal,
    read_between,
    schema_rule,
)
from crumb.structure.typed_values import kinds_of

DEEPEST = 64
"""Objects in objects; what lies deeper is no call."""


@dataclass(frozen=True)
class Marks:
    """How a model of this kind writes what stands around a call and a text."""

    open: str
    close: str
    quote: str


def reading(marks: Marks) -> Callable[[TextReader, ReplyPieces, Sequence[Tool]], Reading[None]]:
    """What reads content and calls."""

    def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
        names = [tool.name for tool in tools]

        def call(mark: str) -> Reading[bool]:
            del mark
            reader.record()
            is_call = yield from reader.accept("call:")
            name, brace = (yield from until_mark(reader, ("{", "\n"))) if is_call else ("", "")
            if brace != "{" or name not in names:
                reader.rewind()
                return False
            reader.forget()
            writer.call(name)
            if (yield from _object(reader, writer.arguments, marks, DEEPEST)):
                yield from reader.accept(marks.close)
            return True

        return read_between(reader, writer, (marks.open,), call)

    return read


def _object(
    reader: TextReader, show: Callable[[str], None], marks: Marks, depth: int
) -> Reading[bool]:
    """An object behind its brace, as JSON; whether it came to its end."""
    show("{")
    begin = ""
    while True:
        yield from reader.skip_spaces()
        if (yield from reader.accept("}")):
            show("}")
            return True
        key, mark = yield from until_mark(reader, (":", "}"))
        if mark != ":":
            return False
        key = key.strip().removeprefix(marks.quote).removesuffix(marks.quote).strip('"')
        show(f"{begin}{json.dumps(key, ensure_ascii=False)}: ")
        if not (yield from _value(reader, show, marks, depth - 1)):
            return False
        yield from reader.skip_spaces()
        yield from reader.accept(",")
        begin = ", "


def _list(
    reader: TextReader, show: Callable[[str], None], marks: Marks, depth: int
) -> Reading[bool]:
    """A list behind its bracket."""
    show("[")
    begin = ""
    while True:
        yield from reader.skip_spaces()
        if (yield from reader.accept("]")):
            show("]")
            return True
        show(begin)
        if not (yield from _value(reader, show, marks, depth - 1)):
            return False
        yield from reader.skip_spaces()
        yield from reader.accept(",")
        begin = ", "


def _value(
    reader: TextReader, show: Callable[[str], None], marks: Marks, depth: int
) -> Reading[bool]:
    yield from reader.skip_spaces()
    if depth <= 0:
        return False
    if (yield from reader.accept(marks.quote)):
        text, mark = yield from until_mark(reader, (marks.quote,))
        show(json.dumps(text, ensure_ascii=False))
        return mark != END
    if (yield from reader.accept("{")):
        return (yield from _object(reader, show, marks, depth))
    if (yield from reader.accept("[")):
        return (yield from _list(reader, show, marks, depth))
    raw: list[str] = []
    whole = yield from read_value(reader, raw.append)
    text = "".join(raw)
    try:
        json.loads(text)
    except ValueError:
        text = json.dumps(text, ensure_ascii=False)
    if not raw:
        return False
    show(text)
    return whole


def writing(marks: Marks) -> Callable[[Sequence[Tool], bool, Mark], str]:
    """What makes the grammar of a forced call."""

    def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
        rules = _Rules(marks, mark)
        calls = []
        for tool in tools:
            body = rules.of_object(tool.parameters)
            calls.append(
                f"({mark(marks.open)} {literal(f'call:{tool.name}')} {body} {mark(marks.close)})"
            )
        lines = [
            f"start: call{f'{{1,{MOST_CALLS}}}' if several else ''}",
            f"call: {' | '.join(calls)}",
        ]
        return "\n".join([*lines, *rules.lines])

    return grammar


class _Rules:
    """Rules of a grammar for values in this format."""

    def __init__(self, marks: Marks, mark: Mark) -> None:
        self.lines: list[str] = []
        self._quote = mark(marks.quote)
        self._has_text = False

    def _add(self, body: str) -> str:
        name = f"part_{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def of_object(self, schema: Mapping[str, Any]) -> str:
        """Required members in their order, then those that may come."""
        members = schema.get("properties")
        members = members if isinstance(members, Mapping) else {}
        required = [name for name in members if name in schema.get("required", ())]
        first = required or list(members)[:1]
        if not members:
            return self._add(literal("{}"))
        parts = [self._member(name, members[name]) for name in first]
        body = ' "," '.join(parts)
        for name in members:
            if name not in first:
                body += f' ("," {self._member(name, members[name])})?'
        return self._add(f'"{{" {body} "}}"' if required else f'"{{" ({body})? "}}"')

    def _member(self, name: str, schema: Any) -> str:
        return f"{literal(f'{name}:')} {self.of(schema)}"

    def of(self, schema: Any) -> str:
        """A rule for values of a schema."""
        schema = schema if isinstance(schema, Mapping) else {}
        if isinstance(schema.get("enum"), list):
            return self._add(" | ".join(self._constant(value) for value in schema["enum"]))
        kinds = sorted(kinds_of(schema)) or ["string"]
        return self._add(" | ".join(self._of_kind(kind, schema) for kind in kinds))

    def _of_kind(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "string":
            return f"({self._quote} /[^<]*/ {self._quote})"
        if kind == "object":
            return self.of_object(schema)
        if kind == "array":
            item = self.of(schema.get("items"))
            return f'("[" ({item} ("," {item})*)? "]")'
        return self._add(schema_rule({"type": kind}))

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return f"({self._quote} {literal(value)} {self._quote})"
        return literal(json.dumps(value))


def make_format(name: str, marks: Marks) -> ToolFormat:
    """The row of one way of writing the marks."""
    return ToolFormat(
        name=name,
        order=5,
        recognises=lambda template: marks.open in template,
        marks=(marks.open, marks.close, marks.quote),
        read=reading(marks),
        grammar=writing(marks),
    )


FORMAT = make_format("gemma", Marks("<|tool_call>", "<tool_call|>", '<|"|>'))
