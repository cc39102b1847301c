"""Ollama's API: /api/chat, /api/generate, /api/embed, and what its clients ask of models.

In: its bodies, options and spans of time. Out: JSON, or one object a line. Streams by default.
An empty prompt loads a model, keep_alive 0 unloads it. Names may end in :latest.
Refuses pictures, raw templates, and changing the models of this server.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from crumb.errors import CrumbError, UsageError
from crumb.pieces import PlainReply
from crumb.requests.chat_request import ChatRequest
from crumb.requests.reading_request import EmbedRequest
from crumb.server.chat import begin, begin_chat, check_room, generate_request
from crumb.server.protocol import Call, HttpAnswer, HttpStream, Route
from crumb.server.protocols.ollama_asking import (
    EMBED_FIELDS,
    FIELDS,
    OllamaBody,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaGenerateBody,
    chat_request,
    generate_options,
    keep_seconds,
    reply_format,
    thinking,
)
from crumb.server.protocols.ollama_lines import ChatLines, GenerateLines, Lines, nanoseconds, stamp
from crumb.server.protocols.openai_completions import prompts_of
from crumb.server.protocols.openai_embeddings import shortened
from crumb.server.readings import read_all
from crumb.server.replies import Replies, read_whole
from crumb.server.served_model import ServedModel


async def chat(call: Call, body: OllamaChatBody) -> None:
    """Answer a chat."""
    if not body.messages:
        await load_only(call, body, {"message": {"role": "assistant", "content": ""}})
        return
    asked = chat_request(body)
    call.facts |= {"model": body.model, "messages": len(body.messages)}
    async with call.service.pool.lease(body.model) as served:
        _keep(served, body)
        check_thinking(served, body)
        replies = await begin_chat(call, served, asked)
        await _write(call, body, ChatLines(call, body), replies)


async def generate(call: Call, body: OllamaGenerateBody) -> None:
    """Continue a prompt, or answer it where the model has a chat template."""
    if not body.prompt:
        await load_only(call, body, {"response": ""})
        return
    call.facts |= {"model": body.model}
    async with call.service.pool.lease(body.model) as served:
        _keep(served, body)
        if served.answers_chats and not body.raw:
            system = [{"role": "system", "content": body.system}] if body.system else []
            asked = ChatRequest(
                messages=(*system, {"role": "user", "content": body.prompt}),
                format=reply_format(body.format),
                options=generate_options(body),
                **thinking(body.think),
            )
            replies = await begin_chat(call, served, asked)
        else:
            tokens = served.loaded.tokens_of(body.prompt)
            check_room(served, len(tokens))
            options = generate_options(body)
            options["format"] = reply_format(body.format)
            request = generate_request(call, served, tokens, options)
            replies = begin(call, served, [(request, PlainReply())])
        await _write(call, body, GenerateLines(call, body), replies)


async def _write(call: Call, body: OllamaBody, lines: Lines, replies: Replies) -> None:
    if body.stream:
        await call.stream(HttpStream(lines.stream(replies), "application/x-ndjson"))
    else:
        ((whole, ending),) = await read_whole(replies, 1)
        await call.answer(HttpAnswer(lines.whole(whole, ending)))


def check_thinking(served: ServedModel, body: OllamaBody) -> None:
    """Raises: UsageError where a model is to think that cannot."""
    if body.think and "thinking" not in served.capabilities:
        raise UsageError(f"{body.model[:100]!r} does not support thinking", where="think")


def _keep(served: ServedModel, body: OllamaBody | OllamaEmbedBody) -> None:
    keep = keep_seconds(body.keep_alive)
    served.keep_seconds = served.keep_seconds if keep is None else keep


async def load_only(call: Call, body: OllamaBody, empty: Mapping[str, Any]) -> None:
    """A request without a prompt: load the model, or let it go."""
    pool, keep = call.service.pool, keep_seconds(body.keep_alive)
    served = pool.find(body.model)
    if keep == 0:
        await pool.unload(body.model)
    else:
        async with pool.lease(body.model):
            _keep(served, body)
    reason = "unload" if keep == 0 else "load"
    line = {"model": body.model, "created_at": stamp(), **empty, "done": True}
    await call.answer(HttpAnswer(line | {"done_reason": reason}))


async def embed(call: Call, body: OllamaEmbedBody) -> None:
    """Vectors of texts."""
    text = body.prompt if body.input is None else body.input
    if text is None:
        raise UsageError("there is no text", where="input")
    prompts = prompts_of(text, "input")
    async with call.service.pool.lease(body.model) as served:
        _keep(served, body)
        most = served.context_tokens
        tokens = [served.loaded.tokens_of(each) for each in prompts]
        cut = [each[:most] if body.truncate else each for each in tokens]
        lost = sum(map(len, tokens)) - sum(map(len, cut))
        call.facts |= {"model": body.model, "truncated_tokens": lost}
        results = await read_all(call, served, [EmbedRequest(each) for each in cut])
        vectors = [shortened(each.vector, body.dimensions).tolist() for each in results]
        total = time.perf_counter() - call.started
        content = {
            "model": body.model,
            "embeddings": vectors,
            "total_duration": nanoseconds(total),
            "load_duration": 1,
            "prompt_eval_count": sum(each.tokens for each in results),
        }
        if lost:
            content["truncated_tokens"] = lost  # never silently
        if body.input is None:
            content["embedding"] = vectors[0]
        await call.answer(HttpAnswer(content))


def problem(status: int, error: CrumbError, id: str) -> HttpAnswer:
    """An error as Ollama's clients read it: a text."""
    del id
    return HttpAnswer({"error": str(error)}, status)


def late_problem(status: int, error: CrumbError) -> bytes:
    """An error in the middle of a stream: a line."""
    del status
    return msgspec.json.encode({"error": str(error)}) + b"\n"


ROUTES = (
    Route("POST", "/api/chat", chat, OllamaChatBody, FIELDS, "Answer a chat"),
    Route("POST", "/api/generate", generate, OllamaGenerateBody, FIELDS, "Continue a prompt"),
    Route("POST", "/api/embed", embed, OllamaEmbedBody, EMBED_FIELDS, "Vectors of texts"),
    Route("POST", "/api/embeddings", embed, OllamaEmbedBody, EMBED_FIELDS, "A vector of a text"),
)
