"""The embedded dialogues: a file of turns -> messages -> one text, as a model reads its chats.

In: the text of the file, and how a chat is written (a model's template, or plainly).
Out: the chats joined. Refuses a file whose turns do not begin with a side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from crumb.errors import TextError

Dialogue = list[dict[str, str]]
"""Messages with a role and content, as chat templates take them."""

Render = Callable[[Sequence[dict[str, str]]], str]
"""Messages -> the text of the chat."""

TURN = re.compile(r"^(user|assistant): ", re.MULTILINE)
BEGIN = re.compile(r"\n\n(?=user: )")


def parse_dialogues(text: str, where: str) -> list[Dialogue]:
    """The dialogues of a file: turns that begin with their side. Raises: TextError."""
    dialogues = []
    for chat in BEGIN.split(text.strip()):
        before, *parts = TURN.split(chat)
        if before or not parts:
            raise TextError("a dialogue begins with a side", where=where, expected="user: ...")
        pairs = zip(parts[::2], parts[1::2], strict=True)
        dialogues.append([{"role": side, "content": said.strip()} for side, said in pairs])
    return dialogues


def render_plainly(messages: Sequence[dict[str, str]]) -> str:
    """A chat where the model has no template for it."""
    return "".join(f"{each['role']}: {each['content']}\n\n" for each in messages)
