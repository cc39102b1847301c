"""Arguments between tags, their values bare text: what GLM and Qwen3-Coder have in common.

In: a reader behind a call's name. Out: the arguments as JSON, a parameter at a time: the type of
a bare value shows only at its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crumb.structure.reader import END, Reading, ReplyPieces, TextReader
from crumb.structure.tool import Tool
from crumb.structure.tool_format import Mark, literal, schema_rule
from crumb.structure.typed_values import is_text, typed_json


@dataclass(frozen=True)
class Tags:
    """What stands around keys, values, and behind the last."""

    key: str
    key_end: str
    value: str  # between a key and its value
    value_end: str
    close: str
    trims: bool = False  # a line break at each end of a value is none of it


def until_mark(reader: TextReader, marks: tuple[str, ...]) -> Reading[tuple[str, str]]:
    """The text up to a mark, and the mark; END for that where none comes."""
    text: list[str] = []
    mark = yield from reader.until(marks, text.append)
    return "".join(text), mark


def read_tagged_arguments(
    reader: TextReader, writer: ReplyPieces, tool: Tool, tags: Tags
) -> Reading[None]:
    """All parameters, and what closes the call."""
    count = 0
    while True:
        _, mark = yield from until_mark(reader, (tags.key, tags.close))
        if mark == END:
            return
        if mark == tags.close:
            writer.arguments("}" if count else "{}")
            return
        name, mark = yield from until_mark(reader, (tags.key_end,))
        yield from reader.skip_spaces()
        if not tags.trims:
            yield from reader.accept(tags.value)
        value, mark = yield from until_mark(reader, (tags.value_end,))
        if mark == END:
            return
        if tags.trims:
            value = value.removesuffix("\n")
        key = json.dumps(name.strip(), ensure_ascii=False)
        begin = ", " if count else "{"
        writer.arguments(f"{begin}{key}: {typed_json(tool, name.strip(), value)}")
        count += 1


def tagged_rules(
    tools: Sequence[Tool],
    tags: Tags,
    mark: Mark,
    head: Callable[[Tool], tuple[str, str]],
    tail: str = "",
) -> str:
    """Rules `call` and below; head(tool) is the text behind the opening mark, and that mark."""
    lines = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        begin, opening = head(tool)
        parts = [mark(opening), literal(begin)]
        for place, (name, schema) in enumerate(tool.properties.items()):
            rule = f"value_{index}_{place}"
            between = f"{tags.value}" if tags.trims else f"\n{tags.value}"
            ending = f"\n{tags.value_end}\n" if tags.trims else f"{tags.value_end}\n"
            key = literal(f"{tags.key}{name}{tags.key_end}{between}")
            if is_text(tool, name) and not schema.get("enum"):
                # up to the first closing tag, which is part of it
                lines.append(f"{rule}[lazy]: /(.|\\n)*{_escaped(ending)}/")
            else:
                lines.append(f"{rule}: {rule}_json {literal(ending)}")
                lines.append(f"{rule}_json: {_bare(schema)}")
            parameter = f"({key} {rule})"
            parts.append(parameter if name in tool.required else f"{parameter}?")
        parts.append(literal(f"{tags.close}{tail}"))
        lines.append(f"call_{index}: {' '.join(parts)}")
    return "\n".join(lines)


def _bare(schema: object) -> str:
    """A value in a grammar: texts of an enumeration without quotes, else JSON."""
    if isinstance(schema, dict) and isinstance(schema.get("enum"), list):
        values = [v if isinstance(v, str) else json.dumps(v) for v in schema["enum"]]
        return " | ".join(literal(value) for value in values)
    return schema_rule(schema if isinstance(schema, dict) else {})


def _escaped(text: str) -> str:
    """A text in a regular expression between slashes."""
    return re.escape(text).replace("/", "\\/").replace("\\\n", "\\n").replace("\n", "\\n")
