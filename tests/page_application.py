"""A small application around the chat page: it speaks the server's streaming protocol by script.

In: what the model says, how fast, what its models are. Out: a starlette application that remembers
what was asked, and a thread that serves it on a port of its own. No model runs here.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from crumb.checkpoints.crumb.manifest import MeasuredRecord
from crumb.errors import ModelNotFound
from crumb.server.page import routes
from crumb.server.page.card import ModelCard, StageBits

CONTEXT_TOKENS = 2048


@dataclass
class Script:
    """What the model of the application does, and what it was asked."""

    answer: str = "The sea is salty."
    thinking: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)  # name and arguments of each
    ending: str = "stop"
    pause_seconds: float = 0.0  # between two words
    load_seconds: float = 0.3
    prompt_pieces: int = 0  # how often the progress of the prompt is told
    states: dict[str, str] = field(default_factory=lambda: {"small": "loaded", "large": "unloaded"})
    bits: dict[str, float] = field(default_factory=lambda: {"small": 4.5, "large": 3.24})
    asked: list[dict[str, Any]] = field(default_factory=list)
    rendered: list[dict[str, Any]] = field(default_factory=list)
    words_sent: int = 0
    left: int = 0  # how many readers went before the end


def application(script: Script) -> Starlette:
    """The page's routes and a chat by script."""

    async def chat(request: Request) -> Response:
        script.asked.append(await request.json())
        if script.states.get(script.asked[-1].get("model", "small")) != "loaded":
            error = {"message": "the model is loading", "type": "overloaded", "code": "loading"}
            return JSONResponse({"error": error}, 503, {"Retry-After": "1"})
        return StreamingResponse(events(script), media_type="text/event-stream")

    async def models(_request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [entry(script, name) for name in script.states]}
        )

    async def change(request: Request) -> Response:
        name, verb = (await request.json())["model"], request.path_params["verb"]
        script.states[name] = verb + "ing"
        await asyncio.sleep(script.load_seconds)
        script.states[name] = verb + "ed"
        return JSONResponse({"success": True})

    app = Starlette(
        routes=[
            *routes(),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models/{verb}", change, methods=["POST"]),
        ]
    )
    app.state.model_card = lambda name: card(script, name)
    return app


def entry(script: Script, name: str) -> dict[str, Any]:
    """A model as a list of models has it."""
    return {
        "id": name,
        "object": "model",
        "crumb": {
            "state": script.states[name],
            "size_bytes": 91_900_000,
            "bits_per_weight": script.bits[name],
            "parameters": 134_500_000,
            "context_tokens": CONTEXT_TOKENS,
            "memory_bytes": 412_000_000,
            "error": None,
        },
    }


def card(script: Script, name: str) -> ModelCard:
    """The card of a model of the script. Raises: ModelNotFound."""
    if name not in script.states:
        raise ModelNotFound("no such model", where=name)
    stages = [StageBits("embedding", 6.5, ("q6_k",))]
    stages += [StageBits(f"block {n}", 2.5 + (n * 7 % 11) / 4, ("int3-g64",)) for n in range(30)]
    measured = MeasuredRecord("wikitext2-test", 0.0634, 0.0007) if name == "small" else None
    return ModelCard(
        "llama", 134_500_000, 91_900_000, script.bits[name], CONTEXT_TOKENS, stages, "gptq",
        "wikitext2, 64 × 512 tokens", measured,
    )  # fmt: skip


async def events(script: Script) -> AsyncIterator[str]:
    """An answer as server-sent events; the reader may leave."""
    done = False
    try:
        for count in range(script.prompt_pieces):
            progress = {"total": 100 * script.prompt_pieces, "processed": 100 * count, "cache": 0}
            yield event({}, prompt_progress=progress)
            await asyncio.sleep(script.pause_seconds)
        yield event({"role": "assistant", "content": ""})
        for word in words(script.thinking):
            yield event({"reasoning_content": word, "reasoning": word})
            await asyncio.sleep(script.pause_seconds)
        for count, word in enumerate(words(script.answer), 1):
            script.words_sent += 1
            yield event({"content": word}, usage=usage(count))
            await asyncio.sleep(script.pause_seconds)
        for index, call in enumerate(script.calls):
            head = {"name": call["name"], "arguments": ""}
            begin = {"index": index, "id": f"call_{index}", "type": "function", "function": head}
            yield event({"tool_calls": [begin]})
            for piece in words(call["arguments"]):
                rest = {"index": index, "function": {"arguments": piece}}
                yield event({"tool_calls": [rest]})
        yield event({}, finish_reason="tool_calls" if script.calls else script.ending)
        yield event(None, usage=usage(len(words(script.answer))))
        yield "data: [DONE]\n\n"
        done = True
    finally:
        script.left += not done


def usage(tokens: int) -> dict[str, int]:
    """Counts of an answer with so many tokens."""
    prompt = 40
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
    }


def words(text: str) -> list[str]:
    """A text in pieces that join to it."""
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]] if text else []


def event(delta: Any, finish_reason: str | None = None, **fields: Any) -> str:
    """One chunk; without a delta it has no choices."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    choices = [] if delta is None else [choice]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "small"}
    return f"data: {json.dumps({**chunk, 'choices': choices, **fields})}\n\n"


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """The address of an application that runs in a thread while the `with` lasts."""
    import uvicorn

    settings = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it began"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
