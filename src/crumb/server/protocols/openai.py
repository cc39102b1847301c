"""What OpenAI's routes share: the shape of errors, sampling fields, messages, usage, events.

In: fields as OpenAI's clients send them. Out: our own records, and JSON as those clients read it.
Refuses content that is no text, and roles and arguments that are none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from crumb.errors import (
    ContextExceeded,
    CrumbError,
    KeyRefused,
    ModelNotFound,
    QueueFull,
    UsageError,
)
from crumb.pieces import Piece, ToolCallArguments, ToolCallStart
from crumb.requests.generate_request import GenerateOptions
from crumb.run.generation import Generation, TokenLogprob
from crumb.server.bodies import Fields
from crumb.server.protocol import Call, HttpAnswer
from crumb.server.replies import Ending, Finish

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""HTTP status -> the type of an error; 4xx are invalid_request_error, 5xx server_error."""

ERROR_CODES: tuple[tuple[type[CrumbError], str], ...] = (
    (ContextExceeded, "context_length_exceeded"),
    (ModelNotFound, "model_not_found"),
    (KeyRefused, "invalid_api_key"),
    (QueueFull, "overloaded"),
)

FINISH = {
    Finish.END: "stop",
    Finish.STOP_STRING: "stop",
    Finish.MAX_TOKENS: "length",
    Finish.CONTEXT: "length",
    Finish.TOOL_CALLS: "tool_calls",
}

HARMLESS = frozenset(
    (
        "user",
        "store",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "verbosity",
        "cache_prompt",
        "echo_prompt",
        "return_progress",
        "timings_per_token",
    )
)
"""Fields of many clients that change no token here."""

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

SEED_MASK = (1 << 64) - 1


class SamplingBody(msgspec.Struct, kw_only=True):
    """Fields that chat and completions share, with those that vLLM and llama.cpp added."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream has besides its text."""

    include_usage: bool = False
    include_obfuscation: bool = False  # harmless: padding against those who count bytes
    continuous_usage_stats: bool = False


def sampling_options(body: SamplingBody) -> GenerateOptions:
    """The fields that were sent, by our names. Raises: UsageError."""
    options: dict[str, Any] = {}
    for name in SAME_NAME:
        value = getattr(body, name)
        if value is not None:
            options[name] = value
    if body.repeat_penalty is not None:
        options.setdefault("repetition_penalty", body.repeat_penalty)
    if body.seed is not None:
        options["seed"] = body.seed & SEED_MASK  # clients send negative ones too
    if options.get("top_k", 0) < 0:
        options["top_k"] = 0  # -1 is what others call all
    if body.logit_bias:
        options["logit_bias"] = [_bias(*pair) for pair in body.logit_bias.items()]
    if body.stop is not None:
        options["stop"] = stop_strings(body.stop)
    if body.ignore_eos:
        options["ignore_end"] = True
    return cast(GenerateOptions, options)


SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)

MOST_STOPS, MOST_STOP_CHARACTERS = 16, 1000


def stop_strings(stop: str | Sequence[str]) -> list[str]:
    """Stop strings, of which empty ones mean nothing. Raises: UsageError for too many."""
    stops = [each for each in ([stop] if isinstance(stop, str) else stop) if each]
    if len(stops) > MOST_STOPS or any(len(each) > MOST_STOP_CHARACTERS for each in stops):
        raise UsageError(
            "too many stop strings, or too long ones",
            where="stop",
            expected=f"at most {MOST_STOPS}, of {MOST_STOP_CHARACTERS} characters",
        )
    return stops


def _bias(token: str, bias: float) -> tuple[int, float]:
    if not token.isascii() or not token.isdecimal() or len(token) > 10:
        raise UsageError(
            "no token's number", where="logit_bias", expected="digits", found=token[:40]
        )
    return int(token), float("-inf") if bias <= -100 else bias


def problem(status: int, error: CrumbError, id: str) -> HttpAnswer:
    """An error as OpenAI's clients read it."""
    del id
    return HttpAnswer({"error": error_object(status, error)}, status)


def late_problem(status: int, error: CrumbError) -> bytes:
    """An error in the middle of a stream, which it ends."""
    return event({"error": error_object(status, error)})


def error_object(status: int, error: CrumbError) -> dict[str, Any]:
    """message, type, param and code."""
    usual = "invalid_request_error" if status < 500 else "server_error"
    codes = (code for kind, code in ERROR_CODES if isinstance(error, kind))
    param = error.where if isinstance(error.where, str) and error.what != "" else None
    return {
        "message": str(error),
        "type": ERROR_TYPES.get(status, usual),
        "param": param,
        "code": next(codes, None),
    }


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def now() -> int:
    """Seconds, as `created` counts them."""
    return int(time.time())


def usage(generations: Sequence[tuple[Generation, int]]) -> dict[str, Any]:
    """Tokens of one prompt's replies, each with its tokens of reasoning."""
    prompt = generations[0][0].prompt_tokens
    cached = generations[0][0].cached_tokens
    completion = sum(each.completion_tokens for each, _ in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(n for _, n in generations)},
    }


def note_usage(call: Call, endings: Sequence[Ending]) -> None:
    """Counts for the log."""
    if endings:
        first = endings[0]
        call.facts |= {
            "prompt_tokens": first.generation.prompt_tokens,
            "cached_tokens": first.generation.cached_tokens,
            "completion_tokens": sum(each.generation.completion_tokens for each in endings),
            "first_token_seconds": round(first.first_token_seconds, 4),
            "finish": first.finish.value,
        }


def timings(ending: Ending) -> dict[str, Any]:
    """Speeds, under llama.cpp's names."""
    generation, times = ending.generation, ending.generation.timings
    read = generation.prompt_tokens - generation.cached_tokens
    return {
        "cache_n": generation.cached_tokens,
        "prompt_n": read,
        "prompt_ms": 1000 * times.prompt_seconds,
        "prompt_per_second": times.prompt_tokens_per_second,
        "predicted_n": generation.completion_tokens,
        "predicted_ms": 1000 * times.decode_seconds,
        "predicted_per_second": times.decode_tokens_per_second,
        "queue_ms": 1000 * times.queue_seconds,
        "first_token_ms": 1000 * ending.first_token_seconds,
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities as a chat has them."""
    return [_token(each) | {"top_logprobs": [_token(top) for top in each.top]} for each in tokens]


def _token(each: TokenLogprob) -> dict[str, Any]:
    return {"token": each.text, "logprob": each.logprob, "bytes": list(each.text.encode())}


def text_content(content: Any, where: str) -> str | None:
    """Content as one text: a text itself, or parts that are texts. Raises: UsageError."""
    if content is None or isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else part.get(TEXT_PARTS.get(kind, ""))
        if not isinstance(text, str):
            raise UsageError(
                "this model reads texts alone", where=where, found=f"a part of type {kind!r}"[:80]
            )
        texts.append(text)
    return "".join(texts)


TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Type of a part -> the key of its text."""


def arguments_object(arguments: object) -> Any:
    """Arguments of an earlier call as templates want them: a mapping."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    try:
        read = json.loads(str(arguments or "{}"))
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {"_raw": str(arguments)}


def plain_fields(refused: Mapping[str, tuple[Any, ...]]) -> Fields:
    """The table of a route: OpenAI's harmless fields, and what it refuses."""
    return Fields(HARMLESS, refused)


def whole_calls(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Calls with all their arguments, as a text."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if isinstance(piece, ToolCallStart):
            function = {"name": piece.name, "arguments": ""}
            calls[piece.index] = {"id": piece.id, "type": "function", "function": function}
        elif isinstance(piece, ToolCallArguments):
            calls[piece.index]["function"]["arguments"] += piece.text
    return list(calls.values())


def function_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools that are functions. Raises: UsageError for others."""
    written = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
            raise UsageError("a tool is a function", where=where, found=str(tool.get("type"))[:40])
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise UsageError("a function has a name", where=where)
        written.append({"type": "function", "function": dict(function)})
    return written
