"""What a model thinks before it answers: between which marks, whether it has begun, how to stop it.

In: a chat template's source, the end of a prompt, then text. Out: the marks; reasoning apart from
what follows. An opening mark later in the text is text. A mark that is begun twice is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crumb.structure.reader import END, SPACES, Reading, ReplyPieces, TextReader, Trimmed

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates are told whether to think."""


@dataclass(frozen=True)
class ReasoningFormat:
    """How a family marks its thoughts."""

    open: str
    close: str
    recognises: Callable[[str], bool]  # a chat template's source
    shown: tuple[str, ...] = ()  # special tokens that the text must show beside these two
    in_channels: bool = False  # harmony reads its thoughts itself
    follows: str = ""  # what the model writes between its thoughts and the answer

    @property
    def marks(self) -> tuple[str, ...]:
        """Special tokens that the text must show."""
        return (self.open, self.close, *self.shown)


ROWS = (
    ReasoningFormat(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        lambda template: "<|channel|>" in template and "<|message|>" in template,
        in_channels=True,
        follows="<|start|>assistant<|channel|>final<|message|>",
    ),
    ReasoningFormat("<|channel>", "<channel|>", lambda template: "<|channel>" in template),
    ReasoningFormat("[THINK]", "[/THINK]", lambda template: "[THINK]" in template),
    ReasoningFormat("<think>", "</think>", lambda template: "</think>" in template),
)
"""The most particular first."""


def recognise_reasoning(template: str) -> ReasoningFormat | None:
    """How the models of a chat template think; None where it knows no thoughts."""
    return next((row for row in ROWS if row.recognises(template)), None)


def switch_of(template: str) -> str | None:
    """The variable by which a template is told whether to think."""
    return next((name for name in SWITCHES if re.search(rf"\b{name}\b", template)), None)


def switch_variables(template: str, thinking: bool | None) -> Mapping[str, Any]:
    """The template's own switch, set; nothing where it has none or nothing is asked."""
    name = switch_of(template)
    return {} if thinking is None or name is None else {name: thinking}


def is_open(prompt_text: str, row: ReasoningFormat) -> bool:
    """Whether a prompt ends within the model's thoughts."""
    return prompt_text.rstrip(SPACES).endswith(row.open)


def read_reasoning(
    reader: TextReader, writer: ReplyPieces, row: ReasoningFormat, begins_open: bool
) -> Reading[None]:
    """Thoughts at the beginning of a text, if it has them; the reader stands behind them then."""
    reader.record()
    yield from reader.skip_spaces()
    opened = yield from reader.accept(row.open)
    if not opened and not begins_open:
        reader.rewind()
        return
    reader.forget()
    thought = Trimmed(writer.reasoning, begun=False)
    if (yield from reader.until((row.close,), thought)) == END:
        return
    yield from reader.skip_spaces()
