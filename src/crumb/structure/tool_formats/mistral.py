"""Mistral up to version 10 of its tokenizer (7B v0.3, Nemo): a list behind a mark.

[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]
Its templates take ids of nine letters and digits alone.
"""

from __future__ import annotations

import secrets
import string
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

OPEN = "[TOOL_CALLS]"


def nine_letters() -> str:
    """An id as Mistral's templates want it."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def read_list(reader: TextReader, writer: ReplyPieces, names: Sequence[str]) -> Reading[bool]:
    """Calls in brackets; False, and nothing read, where there is no such list."""
    reader.record()
    yield from reader.skip_spaces()
    is_list = yield from reader.accept("[")
    yield from reader.skip_spaces()
    if is_list and (yield from reader.accept("]")):
        reader.forget()
        return True
    before = writer.calls
    while is_list and (yield from read_call(reader, writer, names)):
        yield from reader.skip_spaces()
        yield from reader.accept(",")
        yield from reader.skip_spaces()
        if (yield from reader.accept("]")):
            break
    if writer.calls == before:
        reader.rewind()
        return False
    reader.forget()
    return True


def read(reader: TextReader, writer: ReplyPieces, tools: Sequence[Tool]) -> Reading[None]:
    """Content and calls."""
    names = [tool.name for tool in tools]
    return read_between(reader, writer, (OPEN,), lambda mark: read_list(reader, writer, names))


def grammar(tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """A list of one call, or of one and more."""
    more = more_calls(several, '", "')
    rules = call_rules(tools, json_call)
    return f'start: {mark(OPEN)} "[" call {more} "]"\n{rules}'


FORMAT = ToolFormat(
    name="mistral",
    order=30,
    recognises=lambda template: OPEN in template,
    marks=(OPEN,),
    read=read,
    grammar=grammar,
    call_id=nine_letters,
    is_id=lambda id: len(id) == 9 and id.isalnum(),
)
