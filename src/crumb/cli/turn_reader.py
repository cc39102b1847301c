"""Turns of a chat as they are typed, or from a pipe where each line is one.

In: stdin. Out: one text for each turn, until the end of input. A line that ends with a backslash
goes on, and so does a text between lines of three quotes. On a terminal: readline with a history.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

QUOTES = '"""'
PROMPT, MORE = "> ", ". "


class TurnReader:
    """Reads turns; `line` gives one line without its end, and raises EOFError after the last."""

    def __init__(self, line: Callable[[str], str]) -> None:
        self._line = line

    def read(self) -> str:
        """The next turn. Raises: EOFError at the end of input."""
        line = self._line(PROMPT)
        if line.lstrip().startswith(QUOTES):
            return self._quoted(line.lstrip().removeprefix(QUOTES))
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            try:
                line = self._line(MORE)
            except EOFError:
                line = ""
        return "\n".join([*lines, line])

    def _quoted(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(QUOTES):
            try:
                lines.append(self._line(MORE))
            except EOFError:
                return "\n".join(lines).strip("\n")
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")


def stdin_line(prompt: str) -> str:
    """A line from stdin. Raises: EOFError."""
    if sys.stdin.isatty():
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def history_file() -> Path:
    """Where the lines of earlier chats lie."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "crumb" / "chat_history"


HISTORY_LINES = 1000


@contextlib.contextmanager
def line_history() -> Iterator[None]:
    """Editing with a history that lasts, where there are a terminal and readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    path = history_file()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
