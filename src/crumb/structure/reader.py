"""Reads a text one character at a time, however it is cut: what all parsers of replies stand on.

In: characters, then the end, sent into a generator that waits for them. Out: pieces.
A parser is written as if the whole text were there; `yield from` waits for more of it.
Because nothing sees more than the next character, no cut of the text can change the pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from crumb.pieces import (
    Content,
    Piece,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
)

Result = TypeVar("Result")
Reading = Generator[None, str, Result]
"""A parser at work: sent a character at each yield, "" at the end."""

END = ""
SPACES = " \t\r\n"


class TextReader:
    """Characters in order; those that were read may be put back."""

    def __init__(self) -> None:
        self._ahead: deque[str] = deque()
        self._records: list[list[str]] = []  # what was read since each was begun
        self._ended = False

    def next(self) -> Reading[str]:
        """The next character; END once there is none, as often as it is asked for."""
        if self._ahead:
            character = self._ahead.popleft()
        elif self._ended:
            return END
        else:
            character = yield
            if not character:
                self._ended = True
                return END
        for record in self._records:
            record.append(character)
        return character

    def peek(self) -> Reading[str]:
        """The next character, which stays the next one."""
        character = yield from self.next()
        self.put_back(character)
        return character

    def put_back(self, text: str) -> None:
        """Text that was read and is to be read again."""
        self._ahead.extendleft(reversed(text))
        for record in self._records if text else ():
            del record[-len(text) :]

    def record(self) -> None:
        """Remember what is read from now on, up to rewind or forget; records may be nested."""
        self._records.append([])

    def rewind(self) -> None:
        """Read again what was recorded last."""
        self.put_back("".join(self._records.pop()))

    def forget(self) -> None:
        """What was recorded last need not be read again."""
        self._records.pop()

    def skip_spaces(self) -> Reading[None]:
        """Up to the next character that is no white space."""
        while True:
            character = yield from self.next()
            if character == END or character not in SPACES:
                self.put_back(character)
                return

    def accept(self, text: str) -> Reading[bool]:
        """Read exactly this text, or nothing."""
        for count, expected in enumerate(text):
            character = yield from self.next()
            if character != expected:
                self.put_back(text[:count] + character)
                return False
        return True

    def until(self, marks: tuple[str, ...], show: Callable[[str], None]) -> Reading[str]:
        """Show a text up to the first of some marks, which is read; END where none comes.

        No mark begins with another one.
        """
        held = ""
        while True:
            character = yield from self.next()
            if character == END:
                show(held)
                return END
            held += character
            while held and not any(mark.startswith(held) for mark in marks):
                show(held[0])
                held = held[1:]
            if held in marks and held:
                return held


class ReplyPieces:
    """Takes what a parser makes of a text."""

    def __init__(self, call_id: Callable[[], str]) -> None:
        self.pieces: list[Piece] = []
        self._call_id = call_id
        self.calls = 0

    def content(self, text: str) -> None:
        """Some text for the reader."""
        self.pieces.append(Content(text))

    def reasoning(self, text: str) -> None:
        """Some thought."""
        self.pieces.append(Reasoning(text))

    def call(self, name: str, id: str | None = None) -> None:
        """A call begins."""
        self.pieces.append(ToolCallStart(self.calls, id or self._call_id(), name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        self.pieces.append(ToolCallArguments(self.calls - 1, text))


class Trimmed:
    """Shows a text without the white space at its beginning, and holds that at its end back."""

    def __init__(self, show: Callable[[str], None], *, begun: bool = True) -> None:
        self._show, self._begun, self._spaces = show, begun, ""

    def __call__(self, text: str) -> None:
        for character in text:
            if character in SPACES:
                if self._begun:
                    self._spaces += character
                continue
            self._show(self._spaces + character)
            self._spaces, self._begun = "", True

    def flush(self) -> None:
        """The white space at the end belongs to the text after all."""
        self._show(self._spaces)
        self._spaces = ""


def join_pieces(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces with neighbours of one kind joined, and nothing empty."""
    whole: list[Piece] = []
    for piece in pieces:
        if not isinstance(piece, ToolCallStart) and not piece.text:
            continue
        both = _joined(whole[-1], piece) if whole else None
        if both is None:
            whole.append(piece)
        else:
            whole[-1] = both
    return whole


def _joined(first: Piece, second: Piece) -> Piece | None:
    """Two neighbours as one piece, where they are of one kind."""
    if isinstance(first, Content) and isinstance(second, Content):
        return Content(first.text + second.text)
    if isinstance(first, Reasoning) and isinstance(second, Reasoning):
        return Reasoning(first.text + second.text)
    if isinstance(first, ToolCallArguments) and isinstance(second, ToolCallArguments):
        same = first.index == second.index
        return ToolCallArguments(first.index, first.text + second.text) if same else None
    return None
