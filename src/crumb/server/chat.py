"""A chat request on a served model: from messages to tokens, and to replies on their way.

In: a call, a leased model, a ChatRequest. Out: Replies, one for each choice. Templates and
tokenizers work in a thread, for they may take a while. Refuses chats that the model's template does
not take and prompts that leave no room in the context, naming both numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crumb.errors import ContextExceeded, UsageError
from crumb.pieces import PlainReply, ReplyParser
from crumb.requests.chat_request import ChatRequest
from crumb.requests.generate_request import GenerateOptions, GenerateRequest, make_request
from crumb.server.protocol import Call
from crumb.server.replies import Replies
from crumb.server.served_model import ServedModel

EFFORTS_OFF = ("none",)


async def begin_chat(call: Call, served: ServedModel, asked: ChatRequest) -> Replies:
    """Submit all choices of a chat. Raises: UsageError, QueueFull, what the template raises."""
    prompt = await asyncio.to_thread(chat_prompt, served, asked)
    check_room(served, len(prompt))
    request = generate_request(call, served, prompt, asked.options)
    return begin(call, served, [(each, PlainReply()) for each in seeded(request, asked.choices)])


def chat_prompt(served: ServedModel, asked: ChatRequest) -> tuple[int, ...]:
    """The tokens of a conversation. Raises: UsageError, CheckpointError."""
    refuse_unbuilt(asked)
    text = chat_text(served, asked)
    return tuple(served.loaded.tokenizer.encode(text, special=served.plain_template))


def chat_text(served: ServedModel, asked: ChatRequest) -> str:
    """The text of a conversation, as the model reads it."""
    messages, beginning = list(asked.messages), ""
    if asked.continues:
        beginning = str(messages.pop().get("content") or "")
    if served.plain_template:
        texts = [str(each.get("content") or "") for each in messages]
        return "\n\n".join([*texts, beginning] if asked.continues else texts)
    tools = [dict(tool) for tool in asked.shown_tools] or None
    text = served.loaded.chat_template.render(
        messages, tools=tools, variables=template_variables(asked)
    )
    return text + beginning


def template_variables(asked: ChatRequest) -> Mapping[str, Any]:
    """Switches that templates know, from the one setting that all protocols have."""
    thinking = asked.thinking
    if asked.thinking_effort is not None and thinking is None:
        thinking = asked.thinking_effort not in EFFORTS_OFF
    variables: dict[str, Any] = {}
    if thinking is not None:
        variables |= {"enable_thinking": thinking, "thinking": thinking}
    if asked.thinking_effort is not None:
        variables["reasoning_effort"] = asked.thinking_effort
    return variables | dict(asked.variables)


def refuse_unbuilt(asked: ChatRequest) -> None:
    """Never accept what is not held to. Raises: UsageError."""
    if asked.format is not None:
        raise UsageError("a form of the answer cannot be held to yet", where="response_format")
    if asked.shown_tools:
        raise UsageError("calls of tools cannot be read yet", where="tools")


def check_room(served: ServedModel, tokens: int) -> None:
    """Raises: ContextExceeded for a prompt that the context has no room for."""
    if tokens > served.context_tokens:
        raise ContextExceeded(
            f"the prompt is too long: {tokens} tokens > {served.context_tokens} maximum",
            do="Shorten it, or start the server with a larger --context",
        )


def generate_request(
    call: Call, served: ServedModel, prompt: str | Sequence[int], options: GenerateOptions
) -> GenerateRequest:
    """One request; what nobody says is as the model's own files say. Raises: UsageError."""
    request = make_request(prompt, served.loaded.chat_sampling, **options)
    most = call.service.settings.most_tokens
    if most is not None:
        request = replace(request, max_tokens=min(request.max_tokens or most, most))
    return request


def seeded(request: GenerateRequest, choices: int) -> list[GenerateRequest]:
    """The same request for each choice, with a seed of its own where there is one."""
    seed = request.sampling.seed
    if seed is None:
        return [request] * choices
    return [
        replace(request, sampling=replace(request.sampling, seed=(seed + index) % (1 << 64)))
        for index in range(choices)
    ]


def begin(
    call: Call, served: ServedModel, asked: Sequence[tuple[GenerateRequest, ReplyParser]]
) -> Replies:
    """Submit requests. Raises: QueueFull, UsageError."""
    settings = call.service.settings
    return Replies(
        served.loaded,
        asked,
        call.service.arrivals,
        call.service.metrics,
        id=call.id,
        silence_seconds=settings.silence_seconds,
        limit_seconds=settings.request_seconds,
    )
