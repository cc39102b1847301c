"""A chat request on a served model: from messages to tokens, and to replies on their way.

In: a call, a leased model, a ChatRequest. Out: Replies, one for each choice. Templates and
tokenizers work in a thread, for they may take a while. Refuses chats that the model's template does
not take and prompts that leave no room in the context, naming both numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from crumb.errors import ContextExceeded, UsageError
from crumb.pieces import PlainReply, ReplyParser
from crumb.requests.chat_request import ChatRequest
from crumb.requests.generate_request import GenerateOptions, GenerateRequest, make_request
from crumb.server.protocol import Call
from crumb.server.replies import Replies
from crumb.server.served_model import ServedModel

Asked = tuple[GenerateRequest, ReplyParser]


async def begin_chat(call: Call, served: ServedModel, asked: ChatRequest) -> Replies:
    """Submit all choices of a chat. Raises: UsageError, QueueFull, what the template raises."""

    def make() -> Replies:
        request, parser_of = plan_chat(served, asked)
        check_room(served, len(request.prompt))
        choices = seeded(capped(call, request), asked.choices)
        most_calls = None if asked.parallel_tool_calls else 1
        return begin(call, served, [(each, parser_of()) for each in choices], most_calls)

    return await begun(make)


async def begun(make: Callable[[], Replies]) -> Replies:
    """Make replies in a thread: templates, tokenizers and grammars may take a while.

    Who leaves meanwhile has them cancelled once they are there.
    """
    work = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_cancel)
        raise


def _cancel(work: asyncio.Future[Replies]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().cancel()


def plan_chat(
    served: ServedModel, asked: ChatRequest
) -> tuple[GenerateRequest, Callable[[], ReplyParser]]:
    """The request of a chat, and what makes a parser of an answer. Raises: UsageError."""
    if not served.plain_template:
        request, plan = served.loaded.plan_chat(asked)
        return request, plan.parser
    if asked.shown_tools:
        raise UsageError("this model has no chat template that knows tools", where="tools")
    text = "\n\n".join(str(each.get("content") or "") for each in asked.messages)
    options: dict[str, Any] = {"max_tokens": None, **asked.options, "format": asked.format}
    tokens = served.loaded.tokens_of(text)
    return make_request(tokens, served.loaded.chat_sampling, **options), PlainReply


def chat_prompt(served: ServedModel, asked: ChatRequest) -> tuple[int, ...]:
    """The tokens of a conversation. Raises: UsageError, CheckpointError."""
    request, _ = plan_chat(served, asked)
    return tuple(token for token in request.prompt if isinstance(token, int))


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
    return capped(call, make_request(prompt, served.loaded.chat_sampling, **options))


def capped(call: Call, request: GenerateRequest) -> GenerateRequest:
    """A request as the server's settings allow: of so many tokens, guessed or not."""
    settings = call.service.settings
    request = replace(request, speculate=request.speculate and settings.speculate)
    most = settings.most_tokens
    if most is None:
        return request
    asked = most if request.max_tokens is None else request.max_tokens
    return replace(request, max_tokens=min(asked, most))


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
    call: Call, served: ServedModel, asked: Sequence[Asked], most_calls: int | None = None
) -> Replies:
    """Submit requests; each may call so many tools. Raises: QueueFull, UsageError."""
    settings = call.service.settings
    return Replies(
        served.loaded,
        asked,
        call.service.arrivals,
        call.service.metrics,
        id=call.id,
        silence_seconds=settings.silence_seconds,
        limit_seconds=settings.request_seconds,
        most_calls=most_calls,
    )
