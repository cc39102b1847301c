"""How a model's chat template wants tools and thoughts, and what its answers are to be read as.

In: a template's source, a ChatRequest, the text of its prompt. Out: messages and variables for the
template; a ReplyPlan: what the answer is held to, the marks it shows, its parser.
Refuses tools that no format could write, and a form together with a call that is required.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from crumb.requests.chat_request import ChatRequest, ToolChoice
from crumb.requests.generate_request import GenerateOptions
from crumb.requests.reply_format import ReplyFormat, ReplyKind, ThinkingRules
from crumb.structure.formatted_reply import FormattedReply
from crumb.structure.matcher import behind, lark_of
from crumb.structure.reasoning import (
    ReasoningFormat,
    is_open,
    recognise_reasoning,
    switch_of,
    switch_variables,
)
from crumb.structure.tool import Tool, read_tools
from crumb.structure.tool_format import Mark, ToolFormat, literal
from crumb.structure.tool_formats.table import recognise_format
from crumb.structure.tool_history import prepared_messages
from crumb.tokenizer.tokenizer import Tokenizer

EFFORT_OFF = "none"


@dataclass(frozen=True)
class ReplyPlan:
    """What becomes of one answer."""

    form: ReplyFormat | None
    thinking: ThinkingRules | None
    marks: tuple[str, ...]
    tools: tuple[Tool, ...]
    tool_format: ToolFormat
    reasoning: ReasoningFormat | None

    def parser(self) -> FormattedReply:
        """Reads one answer."""
        opened = self.thinking is not None and self.thinking.begins_open
        return FormattedReply(self.tools, self.tool_format, self.reasoning, begins_open=opened)

    @property
    def options(self) -> GenerateOptions:
        """The fields of a GenerateRequest that it sets."""
        return GenerateOptions(format=self.form, thinking=self.thinking, marks=self.marks)


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template's source tells of its family."""

    template: str

    @cached_property
    def tools(self) -> ToolFormat:
        return recognise_format(self.template)

    @cached_property
    def reasoning(self) -> ReasoningFormat | None:
        return recognise_reasoning(self.template)

    @property
    def can_switch_thinking(self) -> bool:
        """Whether the template itself can be told not to think."""
        return switch_of(self.template) is not None

    def messages(self, asked: ChatRequest) -> list[Mapping[str, Any]]:
        """A conversation as the template takes it."""
        tools = asked.shown_tools if self.tools.in_words else ()
        return prepared_messages(asked.messages, self.tools, tools)

    def shown_tools(self, asked: ChatRequest) -> list[dict[str, Any]] | None:
        """What the template is told of tools; None where it knows none."""
        if self.tools.in_words or not asked.shown_tools:
            return None
        return [dict(tool) for tool in asked.shown_tools]

    def variables(self, asked: ChatRequest) -> Mapping[str, Any]:
        """Switches of the template; those that the request names itself come last."""
        variables = dict(switch_variables(self.template, _is_thinking(asked)))
        if asked.thinking_effort is not None:
            variables["reasoning_effort"] = asked.thinking_effort
        return variables | dict(asked.variables)

    def plan(self, asked: ChatRequest, prompt_text: str, tokenizer: Tokenizer) -> ReplyPlan:
        """What becomes of the answer to a prompt. Raises: UsageError."""
        tools = read_tools(asked.shown_tools)
        thinking = self._thinking(asked, prompt_text)
        form = self._form(asked, tools, tokenizer)
        row = self.reasoning
        marks = (*(self.tools.marks if tools else ()), *(row.marks if row else ()))
        if row is not None and row.in_channels:
            marks = (*self.tools.marks, *marks)
        return ReplyPlan(form, thinking, tuple(dict.fromkeys(marks)), tools, self.tools, row)

    def _thinking(self, asked: ChatRequest, prompt_text: str) -> ThinkingRules | None:
        row = self.reasoning
        if row is None:
            return None
        most = asked.thinking_budget_tokens
        if _is_thinking(asked) is False and not self.can_switch_thinking:
            most = 0  # where the template cannot be told, the thoughts end where they begin
        elif prompt_text.rstrip().endswith(row.close):
            return None  # the template has ended them
        return ThinkingRules(
            row.open, row.close, is_open(prompt_text, row), most, follows=row.follows
        )

    def _form(
        self,
        asked: ChatRequest,
        tools: Sequence[Tool],
        tokenizer: Tokenizer,
    ) -> ReplyFormat | None:
        """A form that was asked for, the calls that are required, or those that may be made."""
        mark = _marks_of(tokenizer)
        if asked.tool_choice is ToolChoice.REQUIRED:
            chosen = [tool for tool in tools if asked.tool_name in (None, tool.name)]
            grammar = self.tools.grammar(chosen, asked.parallel_tool_calls, mark)
            return ReplyFormat(ReplyKind.GRAMMAR, text=grammar)
        if asked.format is None and tools:
            return ReplyFormat(
                ReplyKind.GRAMMAR,
                text=self.tools.grammar(tools, asked.parallel_tool_calls, mark),
                opens=self.tools.openings(tools),
            )
        row = self.reasoning
        if asked.format is None or row is None or not row.in_channels:
            return asked.format
        parts = (mark("<|start|>"), mark("<|channel|>"), mark("<|message|>"))
        head = '({} "assistant")? {} "final" {}'.format(*parts)
        return ReplyFormat(ReplyKind.GRAMMAR, text=behind(head, lark_of(asked.format)))


def _is_thinking(asked: ChatRequest) -> bool | None:
    """The one setting of all protocols; None: as the model does by itself."""
    if asked.thinking is None and asked.thinking_effort is not None:
        return asked.thinking_effort != EFFORT_OFF
    return asked.thinking


def _marks_of(tokenizer: Tokenizer) -> Mark:
    """Marks as a grammar writes them: by number where the model has a token for one."""
    added = tokenizer.backend.get_added_tokens_decoder()

    def mark(text: str) -> str:
        token = tokenizer.backend.token_to_id(text)
        return literal(text) if token is None or token not in added else f"<[{token}]>"

    return mark
