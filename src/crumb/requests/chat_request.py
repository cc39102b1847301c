"""What is asked of a chat, whoever asks: the protocols of a server all become this.

In: messages as chat templates take them, tools as JSON schema, how the answer is to look. Out: a
ChatRequest. Refuses choices that no tool answers to, and counts that are none.
Arguments of earlier calls are mappings, content is a text or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from crumb.errors import UsageError
from crumb.requests.generate_request import GenerateOptions
from crumb.requests.reply_format import ReplyFormat

MOST_CHOICES = 128
"""Answers to one request."""


class ToolChoice(StrEnum):
    """Whether the model may call tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True)
class ChatRequest:
    """A conversation and what is to be answered."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # {"type": "function", "function": {...}}
    tool_choice: ToolChoice = ToolChoice.AUTO
    tool_name: str | None = None  # the one that must be called
    parallel_tool_calls: bool = True
    format: ReplyFormat | None = None
    thinking: bool | None = None  # None: as the model does by itself
    thinking_effort: str | None = None  # none, minimal, low, medium, high, max
    thinking_budget_tokens: int | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the chat template
    continues: bool = False  # the last message is the beginning of the answer
    options: GenerateOptions = field(default_factory=lambda: GenerateOptions())
    choices: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.choices <= MOST_CHOICES:
            raise UsageError(
                "not a number of answers",
                where="n",
                expected=f"1 to {MOST_CHOICES}",
                found=self.choices,
            )
        names = [tool["function"]["name"] for tool in self.tools]
        if self.tool_name is not None and self.tool_name not in names:
            raise UsageError(
                "no such tool",
                where="tool_choice",
                expected=", ".join(names)[:200] or "tools",
                found=self.tool_name,
            )
        if self.tool_choice is ToolChoice.REQUIRED and not self.tools:
            raise UsageError("a call is required, but there are no tools", where="tool_choice")

    @property
    def shown_tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools that the model is told of."""
        return () if self.tool_choice is ToolChoice.NONE else self.tools
