"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's clients, Claude Code among them.

In: Anthropic's messages with system, tools and thinking. Out: a message, or its events: blocks one
after the other, each begun and ended. The prompt's cached tokens are not among input_tokens.
What changes on every call and says nothing, a client's billing header, is left out of the prompt.
Refuses pictures and documents. Any claude-* name is the first model where no model has that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, cast

import msgspec

from crumb.errors import ContextExceeded, CrumbError, ModelNotFound, QueueFull, UsageError
from crumb.pieces import Content, Piece, Reasoning, ToolCallStart
from crumb.requests.chat_request import ChatRequest, ToolChoice
from crumb.requests.generate_request import GenerateOptions
from crumb.requests.reply_format import read_reply_format
from crumb.server.bodies import Fields
from crumb.server.chat import begin_chat, chat_prompt
from crumb.server.protocol import Call, HttpAnswer, HttpStream, Route
from crumb.server.protocols.anthropic_messages import conversation
from crumb.server.protocols.openai import arguments_object, note_usage, stop_strings
from crumb.server.replies import Beat, Ending, Finish, Replies, WholeReply, read_whole, reading

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}

STOP_REASONS = {
    Finish.END: "end_turn",
    Finish.STOP_STRING: "stop_sequence",
    Finish.MAX_TOKENS: "max_tokens",
    Finish.CONTEXT: "model_context_window_exceeded",
    Finish.TOOL_CALLS: "tool_use",
}

STATUSES: tuple[tuple[type[CrumbError], int], ...] = ((ContextExceeded, 413), (QueueFull, 529))
"""Errors that Anthropic's clients know by another status: they then shorten, or come again."""

SIGNATURE = "Y3J1bWI="
"""Thinking blocks bear one; clients send it back, nobody reads it."""

CLAUDE = "claude-"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessagesBody(msgspec.Struct, kw_only=True):
    """What a message is asked with."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None


HARMLESS = frozenset(
    (
        "metadata",
        "service_tier",
        "cache_control",
        "context_management",
        "container",
        "betas",
        "inference_geo",
        "speed",
        "diagnostics",
        "user_profile_id",
    )
)

FIELDS = Fields(HARMLESS, {"mcp_servers": ([],)})


def chat_request(body: MessagesBody, in_place: bool) -> ChatRequest:
    """The same in our own words. Raises: UsageError.

    `in_place`: the model's template writes a system message in the middle where it stands.
    """
    options: dict[str, Any] = {
        name: getattr(body, name)
        for name in ("temperature", "top_p", "top_k")
        if getattr(body, name) is not None
    }
    options["max_tokens"] = body.max_tokens
    if body.stop_sequences:
        options["stop"] = stop_strings(body.stop_sequences)
    messages, continues = conversation(body.system, body.messages, in_place)
    choice, name = tool_choice(body.tool_choice)
    thinking, config = body.thinking or {}, body.output_config or {}
    effort, budget = config.get("effort"), thinking.get("budget_tokens")
    kind = thinking.get("type")
    return ChatRequest(
        messages=tuple(messages),
        tools=tuple(tools_of(body.tools or ())),
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=not (body.tool_choice or {}).get("disable_parallel_tool_use", False),
        format=read_reply_format(
            body.output_format or config.get("format"), "output_config.format"
        ),
        thinking={"enabled": True, "disabled": False}.get(str(kind)),
        thinking_effort=effort if isinstance(effort, str) and kind != "disabled" else None,
        thinking_budget_tokens=budget if type(budget) is int else None,
        continues=continues,
        options=cast(GenerateOptions, options),
    )


def tools_of(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools of our own kind; those that Anthropic's servers run themselves are passed over."""
    written = []
    for index, tool in enumerate(tools):
        if tool.get("type") not in (None, "custom"):
            continue
        name, schema = tool.get("name"), tool.get("input_schema")
        if not isinstance(name, str) or not isinstance(schema, Mapping):
            raise UsageError("a tool has a name and an input_schema", where=f"tools.{index}")
        function: dict[str, Any] = {
            "name": name,
            "description": tool.get("description") or "",
            "parameters": dict(schema),
        }
        if tool.get("strict") is not None:
            function["strict"] = bool(tool["strict"])
        written.append({"type": "function", "function": function})
    return written


CHOICES = {"auto": ToolChoice.AUTO, "any": ToolChoice.REQUIRED, "none": ToolChoice.NONE}


def tool_choice(choice: Mapping[str, Any] | None) -> tuple[ToolChoice, str | None]:
    """Whether tools may be called, and which one must be. Raises: UsageError."""
    kind = (choice or {}).get("type", "auto")
    if choice is not None and kind == "tool" and isinstance(choice.get("name"), str):
        return ToolChoice.REQUIRED, choice["name"]
    if kind not in CHOICES:
        raise UsageError(
            "not a choice of tools", where="tool_choice", expected="auto, any, none or tool"
        )
    return CHOICES[kind], None


def model_name(call: Call, name: str) -> str | None:
    """The model that a name means here."""
    try:
        call.service.pool.find(name)
    except ModelNotFound:
        if not name.startswith(CLAUDE):
            raise
        return None
    return name


async def create_message(call: Call, body: MessagesBody) -> None:
    """Answer messages."""
    if body.max_tokens is None:
        raise UsageError("field required", where="max_tokens")
    call.facts |= {"model": body.model, "messages": len(body.messages)}
    async with call.service.pool.lease(model_name(call, body.model)) as served:
        in_place = await asyncio.to_thread(lambda: served.writes_system_in_place)
        replies = await begin_chat(call, served, chat_request(body, in_place))
        written = MessageWriter(call, body, replies.prompt_tokens)
        if body.stream:
            await call.stream(HttpStream(written.events(replies)))
        else:
            ((whole, ending),) = await read_whole(replies, 1)
            await call.answer(HttpAnswer(written.whole(whole, ending)))


async def count_tokens(call: Call, body: MessagesBody) -> None:
    """The tokens of a prompt."""
    async with call.service.pool.lease(model_name(call, body.model)) as served:
        in_place = await asyncio.to_thread(lambda: served.writes_system_in_place)
        asked = chat_request(body, in_place)
        prompt = await asyncio.to_thread(chat_prompt, served, asked)
        await call.answer(HttpAnswer({"input_tokens": len(prompt)}))


class MessageWriter:
    """Writes one message."""

    def __init__(self, call: Call, body: MessagesBody, prompt_tokens: int) -> None:
        self._call, self._prompt_tokens = call, prompt_tokens
        self._head = {
            "id": f"msg_{call.id}",
            "type": "message",
            "role": "assistant",
            "model": body.model,
        }
        self._index = -1
        self._open: type[Piece] | None = None  # the block that is being written

    def whole(self, whole: WholeReply, ending: Ending) -> dict[str, Any]:
        """A message."""
        note_usage(self._call, [ending])
        return {
            **self._head,
            "content": blocks_of(whole.pieces),
            "stop_reason": STOP_REASONS[ending.finish],
            "stop_sequence": ending.generation.stop_string,
            "usage": usage(ending),
        }

    async def events(self, replies: Replies) -> AsyncGenerator[bytes]:
        """A message's events."""
        first = {
            "input_tokens": self._prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": first,
        }
        yield event("message_start", {"message": message})
        yield PING
        async with reading(replies) as beats:
            async for beat in beats:
                if beat.is_silence:
                    yield PING
                    continue
                if written := self._beat(beat):
                    yield written

    def _beat(self, beat: Beat) -> bytes:
        events = [event for piece in beat.pieces for event in self._piece(piece)]
        if beat.ending is not None:
            note_usage(self._call, [beat.ending])
            events += self._close()
            delta = {
                "stop_reason": STOP_REASONS[beat.ending.finish],
                "stop_sequence": beat.ending.generation.stop_string,
            }
            events.append(event("message_delta", {"delta": delta, "usage": usage(beat.ending)}))
            events.append(event("message_stop", {}))
        return b"".join(events)

    def _piece(self, piece: Piece) -> list[bytes]:
        """The events of a piece; another kind of block ends the one before."""
        if isinstance(piece, ToolCallStart):
            block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
            return [*self._close(), self._start(ToolCallStart, block)]
        if isinstance(piece, Content | Reasoning):
            kind = type(piece)
            name = "text" if kind is Content else "thinking"
            events = []
            if self._open is not kind:
                block = {"type": name, name: ""}
                if kind is Reasoning:
                    block["signature"] = ""
                events = [*self._close(), self._start(kind, block)]
            return [*events, self._delta({"type": f"{name}_delta", name: piece.text})]
        return [self._delta({"type": "input_json_delta", "partial_json": piece.text})]

    def _start(self, kind: type[Piece], block: Mapping[str, Any]) -> bytes:
        self._open = kind
        self._index += 1
        return event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return event("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        events = []
        if self._open is Reasoning:
            events.append(self._delta({"type": "signature_delta", "signature": SIGNATURE}))
        self._open = None
        return [*events, event("content_block_stop", {"index": self._index})]


def blocks_of(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """The blocks of a message, in the order they came."""
    blocks: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, ToolCallStart):
            block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": ""}
            blocks.append(block)
        elif isinstance(piece, Content | Reasoning):
            name = "text" if isinstance(piece, Content) else "thinking"
            if not blocks or blocks[-1]["type"] != name:
                more = {"signature": SIGNATURE} if name == "thinking" else {}
                blocks.append({"type": name, name: "", **more})
            blocks[-1][name] += piece.text
        else:
            blocks[-1]["input"] += piece.text
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = arguments_object(block["input"])
    return blocks


def usage(ending: Ending) -> dict[str, Any]:
    """Tokens; those of the prompt that were cached are counted apart."""
    generation = ending.generation
    return {
        "input_tokens": generation.prompt_tokens - generation.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": generation.cached_tokens,
        "output_tokens": generation.completion_tokens,
        "output_tokens_details": {"thinking_tokens": ending.reasoning_tokens},
    }


def event(name: str, content: Mapping[str, Any]) -> bytes:
    """One server-sent event; its name stands in both lines."""
    data = msgspec.json.encode({"type": name, **content})
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def problem(status: int, error: CrumbError, id: str) -> HttpAnswer:
    """An error as Anthropic's clients read it."""
    status = next((code for kind, code in STATUSES if isinstance(error, kind)), status)
    content = {"type": "error", "error": error_object(status, error), "request_id": id}
    return HttpAnswer(content, status)


def late_problem(status: int, error: CrumbError) -> bytes:
    """An error in the middle of a stream, which it ends."""
    status = next((code for kind, code in STATUSES if isinstance(error, kind)), status)
    return event("error", {"error": error_object(status, error)})


def error_object(status: int, error: CrumbError) -> dict[str, str]:
    """type and message."""
    usual = "invalid_request_error" if status < 500 else "api_error"
    return {"type": ERROR_TYPES.get(status, usual), "message": str(error)}


async def hello(call: Call, body: None) -> None:
    """Claude Code looks whether anybody is there."""
    del body
    await call.answer(HttpAnswer(b"", media_type="text/plain"))


ROUTES = (
    Route("POST", "/v1/messages", create_message, MessagesBody, FIELDS, "Answer messages"),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        count_tokens,
        MessagesBody,
        FIELDS,
        "The tokens of a prompt",
    ),
    Route("HEAD", "/api/hello", hello, about="Whether anybody is there", open=True),
)
