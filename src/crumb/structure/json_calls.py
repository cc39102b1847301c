"""Calls that a model writes as JSON objects: {"name": ..., "arguments": {...}}.

In: a reader at the object's first character. Out: a call and its arguments, which are the model's
own characters: a text made again from a parse is no longer the text that was begun.
Refuses, by saying so and with nothing told, objects that name no tool that there is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from crumb.structure.reader import END, SPACES, Reading, ReplyPieces, TextReader

NAMES, ARGUMENTS = ("name",), ("arguments", "parameters")
"""Keys of a call; models of one family use the one or the other."""

CLOSERS = {"{": "}", "[": "]"}


def read_call(reader: TextReader, writer: ReplyPieces, names: Sequence[str]) -> Reading[bool]:
    """One call; False where it is none: then nothing was told and nothing was read."""
    reader.record()
    call = _Call(reader, writer, names)
    if (yield from call.read()) or call.begun:
        reader.forget()
        return True
    reader.rewind()
    return False


class _Call:
    """One object on its way."""

    def __init__(self, reader: TextReader, writer: ReplyPieces, names: Sequence[str]) -> None:
        self._reader, self._writer, self._names = reader, writer, names
        self._name: str | None = None
        self._arguments: str | None = None  # that came before the name
        self.begun = False

    def read(self) -> Reading[bool]:
        reader = self._reader
        yield from reader.skip_spaces()
        if not (yield from reader.accept("{")):
            return False
        while True:
            yield from reader.skip_spaces()
            if (yield from reader.accept("}")):
                return self._end()
            if not (yield from self._member()):
                return False
            yield from reader.skip_spaces()
            yield from reader.accept(",")

    def _member(self) -> Reading[bool]:
        """A key and its value; False where there is none."""
        reader = self._reader
        key = yield from read_string(reader)
        yield from reader.skip_spaces()
        if key is None or not (yield from reader.accept(":")):
            return False
        yield from reader.skip_spaces()
        if key in NAMES and not self.begun:
            name = yield from read_string(reader)
            if name is None or name not in self._names:
                return False
            self._name = name
            if self._arguments is not None:
                self._begin()
                self._writer.arguments(self._arguments)
            return True
        if key in ARGUMENTS and not self.begun:
            return (yield from self._read_arguments())
        return (yield from read_value(reader, lambda text: None))

    def _read_arguments(self) -> Reading[bool]:
        reader = self._reader
        first = yield from reader.peek()
        if first == "{" and self._name is not None:
            self._begin()
            return (yield from read_value(reader, self._writer.arguments))
        if first == "{":
            raw: list[str] = []
            whole = yield from read_value(reader, raw.append)
            self._arguments = "".join(raw)
            return whole
        if first == '"':  # the object as a text, as it is on the wire
            text = yield from read_string(reader)
            if text is None or not isinstance(_loads(text), dict):
                return False
        elif (yield from reader.accept("null")):
            text = "{}"
        else:
            return False
        self._arguments = text
        if self._name is not None:
            self._begin()
            self._writer.arguments(text)
        return True

    def _begin(self) -> None:
        assert self._name is not None
        self._writer.call(self._name)
        self.begun = True

    def _end(self) -> bool:
        if self.begun:
            return True
        if self._name is None:
            return False
        self._begin()
        self._writer.arguments(self._arguments or "{}")
        return True


def read_value(reader: TextReader, show: Callable[[str], None]) -> Reading[bool]:
    """One JSON value, character by character; whether it came to its end.

    Only brackets and quotes are looked at, so a value that is no JSON ends somewhere too.
    """
    first = yield from reader.peek()
    if first == '"':
        return (yield from _raw_string(reader, show))
    if first not in CLOSERS:
        return (yield from _scalar(reader, show))
    closers: list[str] = []
    while True:
        character = yield from reader.next()
        if character == END:
            return False
        if character == '"':
            reader.put_back(character)
            if not (yield from _raw_string(reader, show)):
                return False
            continue
        show(character)
        if character in CLOSERS:
            closers.append(CLOSERS[character])
        elif character in CLOSERS.values():
            closers.pop()
            if not closers:
                return True


def _scalar(reader: TextReader, show: Callable[[str], None]) -> Reading[bool]:
    count = 0
    while True:
        character = yield from reader.next()
        if character == END or character in ",}]" or character in SPACES:
            reader.put_back(character)
            return count > 0 and character != END
        show(character)
        count += 1


def _raw_string(reader: TextReader, show: Callable[[str], None]) -> Reading[bool]:
    """A string with its quotes; whether it came to its end."""
    character = yield from reader.next()
    show(character)
    escaped = False
    while True:
        character = yield from reader.next()
        if character == END:
            return False
        show(character)
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            return True


def read_string(reader: TextReader) -> Reading[str | None]:
    """A string's value; None where there is none."""
    if (yield from reader.peek()) != '"':
        return None
    raw: list[str] = []
    if not (yield from _raw_string(reader, raw.append)):
        return None
    value = _loads("".join(raw))
    return value if isinstance(value, str) else None


def _loads(text: str) -> Any:
    """A JSON value; None where it is none."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return None
