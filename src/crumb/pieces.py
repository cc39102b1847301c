"""What a reply is made of: the stream between a model's text and every protocol.

In: nothing. Out: one record for each kind of piece. Who reads a model's text makes them, each
protocol of the server writes them. They stand above both rooms, so that neither sees the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call of a tool begins; its name is whole."""

    index: int  # among the calls of this reply, from 0
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next characters of a call's arguments: JSON, as the model wrote it."""

    index: int
    text: str


Piece = Content | Reasoning | ToolCallStart | ToolCallArguments


class ReplyParser(Protocol):
    """Tells the kinds of text apart while it arrives. Holds back what may still become a mark."""

    def feed(self, text: str) -> Sequence[Piece]:
        """The pieces that are certain after some more text."""
        ...

    def finish(self) -> Sequence[Piece]:
        """What was held back; the text has ended."""
        ...


class PlainReply:
    """A reply that is content alone."""

    def feed(self, text: str) -> Sequence[Piece]:
        return (Content(text),) if text else ()

    def finish(self) -> Sequence[Piece]:
        return ()
