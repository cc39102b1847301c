"""The text of an answer into content, reasoning and calls of tools, while it is written.

In: text in whatever pieces it comes, special tokens written out. Out: pieces. The same pieces,
joined, however the text was cut. What cannot be read as a call of a tool there is stays content.
Refuses nothing: an answer is what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crumb.pieces import Piece
from crumb.structure.reader import END, Reading, ReplyPieces, TextReader, join_pieces
from crumb.structure.reasoning import ReasoningFormat, read_reasoning
from crumb.structure.tool import Tool
from crumb.structure.tool_format import ToolFormat, call_id


class FormattedReply:
    """One answer on its way."""

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        tool_format: ToolFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        *,
        begins_open: bool = False,
        make_id: Callable[[], str] | None = None,
    ) -> None:
        """`begins_open`: the prompt ends within the model's thoughts already."""
        format_id = tool_format.call_id if tool_format else call_id
        self._writer = ReplyPieces(make_id or format_id)
        self._reading = self._read(tools, tool_format, reasoning, begins_open)
        next(self._reading)
        self._ended = False

    def feed(self, text: str) -> list[Piece]:
        """More of the text; what is certain now."""
        for character in text:
            self._reading.send(character)
        return self._take()

    def finish(self) -> list[Piece]:
        """The text has ended; the rest of it."""
        if not self._ended:
            self._ended = True
            try:
                while True:
                    self._reading.send(END)
            except StopIteration:
                pass
        return self._take()

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._writer.calls

    def _take(self) -> list[Piece]:
        pieces, self._writer.pieces = self._writer.pieces, []
        return join_pieces(pieces)

    def _read(
        self,
        tools: Sequence[Tool],
        tool_format: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        begins_open: bool,
    ) -> Reading[None]:
        reader, writer = TextReader(), self._writer
        in_channels = reasoning is not None and reasoning.in_channels
        if reasoning is not None and not in_channels:
            yield from read_reasoning(reader, writer, reasoning, begins_open)
        if tool_format is not None and (tools or in_channels):
            yield from tool_format.read(reader, writer, tools)
        while (character := (yield from reader.next())) != END:
            writer.content(character)


def parse_reply(parser: FormattedReply, text: str) -> list[Piece]:
    """A whole text at once."""
    return join_pieces([*parser.feed(text), *parser.finish()])
