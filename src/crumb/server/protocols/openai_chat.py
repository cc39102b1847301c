"""POST /v1/chat/completions.

In: OpenAI's chat body, with what vLLM, llama.cpp and DeepSeek added. Out: a chat.completion, or
chunks: a role, content, calls, one with the finish reason, the usage if asked for, [DONE].
Refuses audio, images and functions in their old shape.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from crumb.errors import UsageError
from crumb.pieces import Content, Piece, Reasoning, ToolCallStart
from crumb.requests.chat_request import ChatRequest, ToolChoice
from crumb.requests.reply_format import read_reply_format
from crumb.server.chat import begin_chat
from crumb.server.protocol import Call, HttpAnswer, HttpStream, Route
from crumb.server.protocols.openai import (
    DONE,
    FINISH,
    PING,
    SamplingBody,
    arguments_object,
    chat_logprobs,
    event,
    function_tools,
    note_usage,
    now,
    plain_fields,
    sampling_options,
    text_content,
    timings,
    usage,
    whole_calls,
)
from crumb.server.replies import Beat, Ending, Replies, WholeReply, read_whole, reading

PROGRESS_SECONDS = 0.25
"""Between two words on how far a prompt is read."""

DEVELOPER = "developer"
"""OpenAI's newer word for system."""


class MessageBody(msgspec.Struct, kw_only=True):
    """One message."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ThinkingBody(msgspec.Struct, kw_only=True):
    """Whether and how long the model thinks."""

    type: str = "enabled"
    budget_tokens: int | None = None


class ChatBody(SamplingBody, kw_only=True):
    """What a chat is asked with."""

    messages: list[MessageBody]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    thinking: ThinkingBody | None = None
    thinking_token_budget: int | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    return_progress: bool | None = None


FIELDS = plain_fields(
    {
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "functions": ([],),
        "function_call": ("auto", "none"),
        "web_search_options": (),
        "best_of": (1,),
        "guided_json": (),
        "guided_regex": (),
        "guided_grammar": (),
        "guided_choice": (),
        "grammar": ("",),
        "json_schema": (),
    }
)


def chat_request(body: ChatBody) -> ChatRequest:
    """The same in our own words. Raises: UsageError."""
    options = sampling_options(body)
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    options["max_tokens"] = None if most is None or most < 0 else most
    if body.logprobs:
        options["logprobs"] = min(body.top_logprobs or 0, 20)
    elif body.top_logprobs:
        raise UsageError("logprobs are not asked for", where="top_logprobs", do="Set logprobs")
    if not body.messages:
        raise UsageError("this chat has no messages", where="messages")
    choice, name = tool_choice(body.tool_choice)
    budget = body.thinking_token_budget
    thinking = None
    if body.thinking is not None:
        thinking = body.thinking.type != "disabled"
        budget = budget if budget is not None else body.thinking.budget_tokens
    return ChatRequest(
        messages=tuple(message(each, index) for index, each in enumerate(body.messages)),
        tools=tuple(function_tools(body.tools or ())),
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=read_reply_format(body.response_format, "response_format"),
        thinking=thinking,
        thinking_effort=body.reasoning_effort,
        thinking_budget_tokens=budget,
        variables=body.chat_template_kwargs or {},
        continues=continues(body),
        options=options,
        choices=1 if body.n is None else body.n,
    )


def continues(body: ChatBody) -> bool:
    """Whether the last message is the beginning of the answer. Raises: UsageError."""
    is_answer = body.messages[-1].role == "assistant"
    if body.continue_final_message and not is_answer:
        raise UsageError("the last message is no answer", where="continue_final_message")
    return bool(body.continue_final_message)


def message(body: MessageBody, index: int) -> dict[str, Any]:
    """A message as chat templates take it. Raises: UsageError."""
    where = f"messages[{index}].content"
    role = "system" if body.role == DEVELOPER else body.role
    reasoning = body.reasoning_content or body.reasoning
    content = text_content(body.content, where)
    if content is None and not body.tool_calls and role != "assistant":
        raise UsageError("a message has content", where=where)
    written: dict[str, Any] = {"role": role, "content": content if content is not None else ""}
    if reasoning:
        written["reasoning_content"] = reasoning
    for name in ("name", "tool_call_id"):
        if getattr(body, name) is not None:
            written[name] = getattr(body, name)
    if body.tool_calls:
        written["tool_calls"] = [tool_call(each, index) for each in body.tool_calls]
    return written


def tool_call(call: Mapping[str, Any], index: int) -> dict[str, Any]:
    """An earlier call as templates take it: its arguments a mapping. Raises: UsageError."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError("a call has a function with a name", where=f"messages[{index}].tool_calls")
    arguments = arguments_object(function.get("arguments"))
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def tool_choice(choice: str | Mapping[str, Any] | None) -> tuple[ToolChoice, str | None]:
    """Whether tools may be called, and which one must be. Raises: UsageError."""
    if choice is None:
        return ToolChoice.AUTO, None
    if isinstance(choice, str):
        if choice in list(ToolChoice):
            return ToolChoice(choice), None
    elif choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if isinstance(name, str):
            return ToolChoice.REQUIRED, name
    raise UsageError(
        "not a choice of tools",
        where="tool_choice",
        expected="auto, none, required, or a function with a name",
        found=str(choice)[:80],
    )


async def chat(call: Call, body: ChatBody) -> None:
    """Answer a chat."""
    asked = chat_request(body)
    call.facts |= {"model": body.model, "messages": len(body.messages)}
    async with call.service.pool.lease(body.model) as served:
        replies = await begin_chat(call, served, asked)
        written = ChatWriter(call, body, served.name)
        if body.stream:
            await call.stream(HttpStream(written.events(replies)))
        else:
            await call.answer(HttpAnswer(written.whole(await read_whole(replies, asked.choices))))


class ChatWriter:
    """Writes one chat's answer."""

    def __init__(self, call: Call, body: ChatBody, model: str) -> None:
        self._call, self._body = call, body
        self._head = {"id": f"chatcmpl-{call.id}", "created": now(), "model": model}
        self._has_usage = body.stream_options is not None and body.stream_options.include_usage
        self._prompt_tokens, self._tokens = 0, dict[int, int]()  # of each choice so far

    def whole(self, wholes: Sequence[tuple[WholeReply, Ending]]) -> dict[str, Any]:
        """A chat.completion."""
        note_usage(self._call, [ending for _, ending in wholes])
        choices = [
            {
                "index": index,
                "message": whole_message(whole),
                "logprobs": self._logprobs(whole.logprobs),
                "finish_reason": FINISH[ending.finish],
            }
            for index, (whole, ending) in enumerate(wholes)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "system_fingerprint": None,
            "choices": choices,
            "usage": usage([(e.generation, e.reasoning_tokens) for _, e in wholes]),
            "timings": timings(wholes[0][1]),
        }

    async def events(self, replies: Replies) -> AsyncGenerator[bytes]:
        """Chunks of a chat.completion."""
        endings: list[Ending] = []
        self._prompt_tokens = replies.prompt_tokens
        for index in range(self._body.n or 1):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        if self._body.return_progress:
            replies.progress_seconds = PROGRESS_SECONDS
        async with reading(replies) as beats:
            async for beat in beats:
                if beat.is_silence:
                    yield self._silence(replies)
                    continue
                written = self._beat(beat)
                if beat.ending is not None:
                    endings.append(beat.ending)
                if written:
                    yield written
        note_usage(self._call, endings)
        if self._has_usage:
            total = usage([(each.generation, each.reasoning_tokens) for each in endings])
            yield event(self._with_head({"choices": [], "usage": total}))
        yield DONE

    def _silence(self, replies: Replies) -> bytes:
        """That the stream lives; how far the prompt is read, as llama.cpp's server tells it."""
        progress = replies.progress if self._body.return_progress else None
        if progress is None:
            return PING
        told = {
            "total": progress.prompt_tokens,
            "cache": progress.cached_tokens,
            "processed": progress.read_tokens,
            "time_ms": round(1000 * progress.seconds),
        }
        return self._chunk(0, {}, prompt_progress=told)

    def _beat(self, beat: Beat) -> bytes:
        """All that arrived together, neighbours of one kind as one chunk."""
        self._tokens[beat.choice] = beat.tokens
        deltas = list(deltas_of(beat.pieces))
        logprobs = self._logprobs(beat.logprobs) if beat.logprobs else None
        if logprobs is not None and not deltas:
            deltas = [{}]
        chunks = []
        for place, delta in enumerate(deltas):
            chunks.append(self._chunk(beat.choice, delta, None if place else logprobs))
        if beat.ending is not None:
            finish, times = FINISH[beat.ending.finish], timings(beat.ending)
            chunks.append(self._chunk(beat.choice, {}, finish=finish, timings=times))
        return b"".join(chunks)

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        logprobs: Any = None,
        finish: str | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage_field = {"usage": self._usage_so_far()} if self._has_usage else {}
        return event(self._with_head({"choices": [choice], **usage_field, **more}))

    def _usage_so_far(self) -> dict[str, int] | None:
        """Counts in every chunk, as vLLM has them, where they were asked for."""
        options = self._body.stream_options
        if options is None or not options.continuous_usage_stats:
            return None
        prompt, completion = self._prompt_tokens, sum(self._tokens.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _with_head(self, content: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", **content}

    def _logprobs(self, tokens: Sequence[Any]) -> dict[str, Any] | None:
        return {"content": chat_logprobs(tokens), "refusal": None} if self._body.logprobs else None


def whole_message(whole: WholeReply) -> dict[str, Any]:
    """The message of a choice; reasoning under both names that clients read."""
    calls = whole_calls(whole.pieces)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": whole.content if whole.content or not calls else None,
        "refusal": None,
    }
    if whole.reasoning:
        message |= {"reasoning_content": whole.reasoning, "reasoning": whole.reasoning}
    if calls:
        message["tool_calls"] = calls
    return message


def deltas_of(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Deltas of a chunk; neighbours of one kind are put together."""
    deltas: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, Content):
            if deltas and deltas[-1].keys() == {"content"}:
                deltas[-1]["content"] += piece.text
            else:
                deltas.append({"content": piece.text})
        elif isinstance(piece, Reasoning):
            deltas.append({"reasoning_content": piece.text, "reasoning": piece.text})
        elif isinstance(piece, ToolCallStart):
            function = {"name": piece.name, "arguments": ""}
            entry = {"index": piece.index, "id": piece.id, "type": "function", "function": function}
            deltas.append({"tool_calls": [entry]})
        else:
            entry = {"index": piece.index, "function": {"arguments": piece.text}}
            deltas.append({"tool_calls": [entry]})
    return deltas


ROUTES = (
    Route(
        "POST", "/v1/chat/completions", chat, ChatBody, FIELDS, "Answer a chat, whole or streamed"
    ),
)
