"""gpt-oss: every part of an answer has a channel, and a call a recipient.

<|channel|>analysis<|message|>thought<|end|><|start|>assistant<|channel|>commentary
to=functions.f <|constrain|>json<|message|>{...}<|call|>
Or <|start|>assistant<|channel|>final<|message|>content<|return|>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from crumb.structure.json_calls import read_value
from crumb.structure.reader import END, Reading, ReplyPieces, TextReader
from crumb.structure.tagged_calls import until_mark
from crumb.structure.tool import Tool
from crumb.structure.tool_format import Mark, ToolFormat, call_rules, literal

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, FINISH, CALL, RETURN = "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"
ENDS = (FINISH, CALL, RETURN, START)

THOUGHT = "analysis"
RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Thoughts, content and calls; a text without a channel is content."""
    names = [tool.name for tool in tools]
    while True:
        first = yield from reader.peek()
        reader.record()
        head, mark = "", END
        if first == "<":
            head, mark = yield from until_mark(reader, (MESSAGE, *ENDS[:-1]))
        if mark != MESSAGE and not head.startswith((START, CHANNEL)):
            reader.rewind()
            mark = yield from _content(reader, writer)
        elif mark != MESSAGE:  # a head that was cut off
            reader.forget()
        if mark == END:
            return
        if mark != MESSAGE:
            continue
        reader.forget()
        recipient = RECIPIENT.search(head)
        if recipient is not None and recipient[1] in names:
            writer.call(recipient[1])
            yield from reader.skip_spaces()
            yield from read_value(reader, writer.arguments)
            _, mark = yield from until_mark(reader, ENDS)
        elif CHANNEL + THOUGHT in head and recipient is None:
            mark = yield from reader.until(ENDS, writer.reasoning)
        else:
            mark = yield from _content(reader, writer)
        if mark == END:
            return
        if mark == START:
            reader.put_back(START)


def _content(reader: TextReader, writer: ReplyPieces) -> Reading[str]:
    return (yield from reader.until(ENDS, writer.content))


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """One call: this family makes no two in one answer."""
    del several

    def write(tool: Tool, rule: str) -> str:
        to = literal(f"commentary to=functions.{tool.name} ")
        head = f"{mark(CHANNEL)} {to} {mark(CONSTRAIN)} {literal('json')} {mark(MESSAGE)}"
        return f"({mark(START)} {literal('assistant')})? {head} {rule}"

    return f"start: call\n{call_rules(tools, write)}"


FORMAT = ToolFormat(
    name="harmony",
    order=1,
    recognises=lambda template: CHANNEL in template and MESSAGE in template,
    marks=(START, CHANNEL, MESSAGE, CONSTRAIN, FINISH, CALL, RETURN),
    read=read,
    grammar=grammar,
    opens=lambda tools: tuple(
        f"{CHANNEL}commentary to=functions.{tool.name} {CONSTRAIN}json{MESSAGE}" for tool in tools
    ),
)
