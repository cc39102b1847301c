"""What Ollama's clients ask, in our own words.

In: bodies of chats, texts and vectors, options, spans of time as Go writes them. Out: requests.
Refuses pictures, options that are none, and spans that cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from crumb.errors import UsageError
from crumb.requests.chat_request import ChatRequest
from crumb.requests.generate_request import GenerateOptions
from crumb.requests.reply_format import ReplyFormat, ReplyKind
from crumb.server.bodies import Fields
from crumb.server.protocols.openai import arguments_object, function_tools, stop_strings

SAME_NAME = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
)

HARMLESS_OPTIONS = frozenset(
    (
        "num_ctx",  # the server has its own
        "num_keep",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "numa",
        "low_vram",
        "f16_kv",
        "use_mmap",
        "use_mlock",
        "vocab_only",
        "logits_all",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "tfs_z",
        "typical_p",
        "penalize_newline",
        "draft_num_predict",
    )
)


class OllamaMessage(msgspec.Struct, kw_only=True):
    """One message."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaBody(msgspec.Struct, kw_only=True):
    """What a chat and a text have in common."""

    model: str
    stream: bool = True
    format: Any = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaChatBody(OllamaBody, kw_only=True):
    """What a chat is asked with."""

    messages: list[OllamaMessage] = []
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateBody(OllamaBody, kw_only=True):
    """What a text is asked with."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False


class OllamaEmbedBody(msgspec.Struct, kw_only=True):
    """What vectors are asked with; `prompt` is the older name of `input`."""

    model: str
    input: str | list[Any] | None = None
    prompt: str | None = None
    truncate: bool = True
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


REFUSED = {"images": ([],), "template": ("",), "suffix": ("",), "context": ([],)}
FIELDS = Fields(frozenset(("truncate", "shift")), REFUSED)
EMBED_FIELDS = Fields()


def generate_options(body: OllamaBody) -> GenerateOptions:
    """Options by our names. Raises: UsageError for one that is none."""
    options: dict[str, Any] = {"max_tokens": None}
    for name, value in (body.options or {}).items():
        if value is None or name in HARMLESS_OPTIONS:
            continue
        if name in SAME_NAME:
            options[name] = value
        elif name not in OPTIONS:
            raise UsageError("no such option", where=f"options.{name}"[:100])
        else:
            OPTIONS[name](options, value)
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    return cast(GenerateOptions, options)


def _whole(value: object, name: str) -> int:
    if type(value) is not int and not (isinstance(value, float) and value.is_integer()):
        raise UsageError("not a whole number", where=f"options.{name}", found=str(value)[:40])
    return int(value)


def _num_predict(options: dict[str, Any], value: object) -> None:
    most = _whole(value, "num_predict")
    options["max_tokens"] = None if most < 0 else most  # -1 endless, -2 to the context's end


def _seed(options: dict[str, Any], value: object) -> None:
    seed = _whole(value, "seed")
    options["seed"] = None if seed < 0 else seed


def _top_k(options: dict[str, Any], value: object) -> None:
    options["top_k"] = max(_whole(value, "top_k"), 0)


def _repeat_last_n(options: dict[str, Any], value: object) -> None:
    options["penalty_window_tokens"] = max(_whole(value, "repeat_last_n"), 0)


def _repeat_penalty(options: dict[str, Any], value: object) -> None:
    options["repetition_penalty"] = value


def _stop(options: dict[str, Any], value: object) -> None:
    if isinstance(value, str | list):
        options["stop"] = stop_strings(value)


OPTIONS = {
    "num_predict": _num_predict,
    "seed": _seed,
    "top_k": _top_k,
    "repeat_last_n": _repeat_last_n,
    "repeat_penalty": _repeat_penalty,
    "stop": _stop,
}
"""Options whose names or values differ from ours."""


def reply_format(format: Any) -> ReplyFormat | None:
    """A form of the answer: "json", or a schema. Raises: UsageError."""
    if format in (None, ""):
        return None
    if format == "json":
        return ReplyFormat(ReplyKind.JSON_OBJECT)
    if isinstance(format, Mapping):
        return ReplyFormat(ReplyKind.JSON_SCHEMA, dict(format))
    raise UsageError("not a form of an answer", where="format", expected="json, or a schema")


def chat_request(body: OllamaChatBody) -> ChatRequest:
    """The same in our own words. Raises: UsageError."""
    messages = [message(each, index) for index, each in enumerate(body.messages)]
    return ChatRequest(
        messages=tuple(messages),
        tools=tuple(function_tools(body.tools or ())),
        format=reply_format(body.format),
        continues=messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"),
        options=generate_options(body),
        **thinking(body.think),
    )


def thinking(think: bool | str | None) -> dict[str, Any]:
    """`think` as a switch, or as an effort."""
    if isinstance(think, str):
        return {"thinking": True, "thinking_effort": think}
    return {"thinking": think}


def message(body: OllamaMessage, index: int) -> dict[str, Any]:
    """A message as chat templates take it. Raises: UsageError."""
    if body.images:
        raise UsageError("this model reads texts alone", where=f"messages[{index}].images")
    written: dict[str, Any] = {"role": body.role, "content": body.content or ""}
    if body.thinking:
        written["reasoning_content"] = body.thinking
    if body.tool_name:
        written["name"] = body.tool_name
    if body.tool_call_id:
        written["tool_call_id"] = body.tool_call_id
    if body.tool_calls:
        functions = [each.get("function") or {} for each in body.tool_calls]
        written["tool_calls"] = [
            {
                "id": str(each.get("id") or f"call_{place}"),
                "type": "function",
                "function": {
                    "name": str(function.get("name") or ""),
                    "arguments": arguments_object(function.get("arguments")),
                },
            }
            for place, (each, function) in enumerate(zip(body.tool_calls, functions, strict=True))
        ]
    return written


UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")


def keep_seconds(keep: float | str | None) -> float | None:
    """How long a model stays unused: infinite where negative. Raises: UsageError."""
    if keep is None:
        return None
    if isinstance(keep, str):
        text = keep.strip()
        sign = -1.0 if text.startswith("-") else 1.0
        parts = DURATION.findall(text)
        if "".join(number + unit for number, unit in parts) == text.lstrip("-") and parts:
            keep = sign * sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)
        else:
            try:
                keep = float(text)
            except ValueError:
                raise UsageError(
                    "not a span of time", where="keep_alive", expected="such as 5m", found=text[:40]
                ) from None
    return float("inf") if keep < 0 else keep
