"""What is asked of a generation: one record for Python, the command line and the server.

In: a prompt and settings, numbers and arrays of NumPy among them. Out: a GenerateRequest of plain
values. GenerateOptions are its fields as keywords, so that editors know them.
Refuses settings outside their range, prompts that are neither text nor tokens, empty stop strings.
Sources: CTRL (arXiv 1909.05858, section 4.1) for the repetition penalty; OpenAI's API reference for
frequency and presence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError
from crumb.requests.keywords import check_known
from crumb.requests.number import as_float, as_integer
from crumb.requests.reply_format import (
    ReplyFormat,
    ReplyKind,
    ThinkingRules,
    read_reply_format,
)

Tokens = Sequence[int] | NDArray[np.integer[Any]]
Prompt = str | Tokens
"""A text, or tokens as they are."""

LogitsHook = Callable[
    [tuple[int, ...], NDArray[np.float32]], NDArray[np.bool_] | NDArray[np.floating[Any]] | None
]
"""Told the tokens generated so far and a copy of the logits, (vocabulary,) f32, before each choice.

It edits the copy and gives None, or gives (vocabulary,): True for tokens that may be chosen, or
numbers to add. It runs in the scheduler's thread, so it must be quick.
"""

DEFAULT_MOST_TOKENS = 256
"""Tokens of a text where nothing is said."""

MOST_TOKEN = 1 << 31

NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
INTEGERS: dict[str, int] = {"top_k": 1 << 31, "penalty_window_tokens": 1 << 31, "seed": 1 << 64}
"""Setting -> the first integer above its range, which begins at 0."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults are greedy decoding of the model's own distribution."""

    temperature: float = 0.0  # 0: the most likely token
    top_k: int = 0  # so many most likely tokens; 0: all
    top_p: float = 1.0  # the smallest set of most likely tokens that holds this probability
    min_p: float = 0.0  # at least this share of the most likely token's probability
    repetition_penalty: float = 1.0  # positive logits of seen tokens divided, negative multiplied
    frequency_penalty: float = 0.0  # taken from a logit for each time the token was generated
    presence_penalty: float = 0.0  # taken once from the logit of a generated token
    penalty_window_tokens: int = 0  # how many last tokens, prompt included, penalties see; 0: all
    seed: int | None = None  # of the draws; None: drawn itself, and the result has it
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()  # kept as a sorted tuple

    def __post_init__(self) -> None:
        for name, (low, high) in NUMBERS.items():
            number = as_float(getattr(self, name))
            if number is None or not low <= number <= high:  # NaN comes here too
                raise _refuse(name, f"{low:g} to {high:g}", getattr(self, name))
            object.__setattr__(self, name, number)
        for name, above in INTEGERS.items():
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            integer = as_integer(value)
            if integer is None or not 0 <= integer < above:
                raise _refuse(name, f"an integer from 0 to {above - 1}", value)
            object.__setattr__(self, name, integer)
        object.__setattr__(
            self, "logit_bias", tuple(sorted(map(_bias, dict(self.logit_bias).items())))
        )

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty changes anything."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class GenerateRequest:
    """What to generate after one prompt."""

    prompt: Prompt  # kept as a text or a tuple
    max_tokens: int | None = DEFAULT_MOST_TOKENS  # None: as many as the context holds; 0: none
    sampling: Sampling = field(default_factory=Sampling)
    stop: str | Sequence[str] = ()  # texts that end the generation, not part of it; kept as a tuple
    logprobs: int | None = None  # most likely tokens told with each token; None: no logprobs at all
    prompt_logprobs: bool = False  # the prompt's tokens measured too
    ignore_end: bool = False  # end tokens are tokens like others
    logits_hook: LogitsHook | None = None  # forbids tokens or moves their logits before each choice
    format: ReplyFormat | None = None  # what the text is held to, once the model has thought
    thinking: ThinkingRules | None = None  # how long the model may think; None: it does not
    marks: tuple[str, ...] = ()  # special tokens that the text shows
    speculate: bool = True  # guess tokens from the text so far, where that pays; none changes

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", plain_prompt(self.prompt))
        for name in ("max_tokens", "logprobs"):
            value = getattr(self, name)
            count = as_integer(value)
            if value is not None and (count is None or count < 0):
                raise UsageError(
                    "a setting of the request is out of range",
                    where=name,
                    expected="an integer from 0, or none",
                    found=str(value)[:80],
                )
            object.__setattr__(self, name, count)
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        check_stops(stops)
        object.__setattr__(self, "stop", tuple(stops))


class SamplingOptions(TypedDict, total=False):
    """The fields of Sampling as keywords."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_window_tokens: int
    seed: int | None
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]


class GenerateOptions(SamplingOptions, total=False):
    """The fields of GenerateRequest and of its Sampling as keywords."""

    max_tokens: int | None
    sampling: Sampling
    stop: str | Sequence[str]
    logprobs: int | None
    prompt_logprobs: bool
    ignore_end: bool
    logits_hook: LogitsHook | None
    format: ReplyFormat | None
    thinking: ThinkingRules | None
    marks: tuple[str, ...]
    speculate: bool
    response_format: Mapping[str, Any] | ReplyFormat | None  # as clients send it: becomes format
    json_schema: Mapping[str, Any] | None  # the same for a schema alone
    grammar: str | None  # of Lark, as llguidance reads it
    regex: str | None


FORMS: dict[str, Callable[[Any], ReplyFormat | None]] = {
    "format": read_reply_format,
    "response_format": read_reply_format,
    "json_schema": lambda schema: ReplyFormat(ReplyKind.JSON_SCHEMA, schema=schema),
    "grammar": lambda text: ReplyFormat(ReplyKind.GRAMMAR, text=text),
    "regex": lambda text: ReplyFormat(ReplyKind.REGEX, text=text),
}
"""Keyword -> the format that it means."""


def make_request(
    prompt: Prompt, defaults: Sampling | None = None, **options: Unpack[GenerateOptions]
) -> GenerateRequest:
    """A request from keywords; `defaults` hold where no keyword speaks. Raises: UsageError."""
    of_sampling = {each.name for each in fields(Sampling)}
    chosen: dict[str, Any] = {name: each for name, each in options.items() if name in of_sampling}
    others: dict[str, Any] = {name: each for name, each in options.items() if name not in chosen}
    form = take_form(others)
    check_known(others, "a generation", GenerateRequest)
    sampling = others.pop("sampling", defaults or Sampling())
    return GenerateRequest(prompt, sampling=replace(sampling, **chosen), format=form, **others)


def take_form(options: dict[str, Any]) -> ReplyFormat | None:
    """The form that keywords ask for, which are taken away. Raises: UsageError for two."""
    asked = {name: options.pop(name) for name in FORMS if name in options}
    forms = [FORMS[name](value) for name, value in asked.items() if value is not None]
    forms = [form for form in forms if form is not None]
    if len(forms) > 1:
        raise UsageError("two forms for one answer", found=", ".join(asked))
    return forms[0] if forms else None


def plain_prompt(prompt: object) -> str | tuple[int, ...]:
    """A text, or tokens as a tuple of plain integers. Raises: UsageError."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise UsageError(
            "a prompt is a text or tokens", where="prompt", found="bytes", do="Decode them first"
        )
    try:
        values = list(prompt.tolist() if isinstance(prompt, np.ndarray) else iter(prompt))  # type: ignore[call-overload]
    except TypeError:
        raise UsageError(
            "a prompt is a text or a list of tokens", where="prompt", found=str(prompt)[:40]
        ) from None
    tokens = [as_integer(value) for value in values]
    for value, token in zip(values, tokens, strict=True):
        if token is None or not 0 <= token < MOST_TOKEN:
            raise UsageError(
                "a prompt is a text or a list of tokens from 0",
                where="prompt",
                found=str(value)[:40],
            )
    return tuple(token for token in tokens if token is not None)


def prompt_list(prompts: object) -> list[Any] | None:
    """Several prompts, each a text or tokens; None where it is a single one."""
    if not isinstance(prompts, list | tuple):
        return None
    several = all(isinstance(each, str | Sequence | np.ndarray) for each in prompts)
    return list(prompts) if several else None


def check_stops(stops: Sequence[str]) -> None:
    """Raises: UsageError for stop strings that are empty or no text."""
    is_list = isinstance(stops, Iterable) and not isinstance(stops, str)
    if not is_list or not all(isinstance(stop, str) for stop in stops):
        raise UsageError("stop strings are a list of texts", where="stop", found=str(stops)[:80])
    if "" in stops:
        raise UsageError(
            "a stop string is empty", where="stop", do="Leave it out: every text begins with it"
        )


def _bias(pair: tuple[object, object]) -> tuple[int, float]:
    token, bias = as_integer(pair[0]), as_float(pair[1])
    if token is None or token < 0:
        raise _refuse("logit_bias", "tokens as integers from 0", pair[0])
    if bias is None or math.isnan(bias) or bias == math.inf:
        raise _refuse(f"logit_bias of token {token}", "a number, or -inf for never", pair[1])
    return token, bias


def _refuse(name: str, expected: str, value: object) -> UsageError:
    return UsageError(
        "a sampling setting is out of range", where=name, expected=expected, found=str(value)[:80]
    )
