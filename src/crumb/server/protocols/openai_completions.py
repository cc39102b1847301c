"""POST /v1/completions: continue texts, or measure them.

In: a prompt or a list of them, texts or tokens. Out: a text_completion or its chunks; with `echo`
and `logprobs` the prompt's own log-probabilities, which is how others score multiple choice: one
entry for each token of the prompt and the text, the first null, all from one array.
Refuses suffixes, and echoed log-probabilities in a stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from crumb.errors import UsageError
from crumb.pieces import Content, PlainReply
from crumb.requests.generate_request import GenerateRequest
from crumb.run.generation import TokenLogprob
from crumb.server.chat import begin, check_room, generate_request, seeded
from crumb.server.protocol import Call, HttpAnswer, HttpStream, Route
from crumb.server.protocols.openai import (
    DONE,
    FINISH,
    PING,
    SamplingBody,
    event,
    note_usage,
    now,
    plain_fields,
    sampling_options,
    timings,
)
from crumb.server.replies import Ending, Replies, WholeReply, read_whole, reading
from crumb.server.served_model import ServedModel

DEFAULT_TOKENS = 16
"""Of a completion that says nothing, as OpenAI's reference has it."""

MOST_LOGPROBS = 20
MOST_CHOICES = 4096


class CompletionBody(SamplingBody, kw_only=True):
    """What a completion is asked with."""

    prompt: str | list[Any]
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False


FIELDS = plain_fields({"suffix": ("",), "best_of": (1,), "grammar": ("",), "json_schema": ()})


def prompts_of(prompt: str | Sequence[Any], where: str = "prompt") -> list[Any]:
    """Prompts, each a text or tokens. Raises: UsageError."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise UsageError("there is no prompt", where=where)
    if all(type(each) is int for each in prompt):
        return [tuple(prompt)]
    for each in prompt:
        tokens = isinstance(each, list) and all(type(token) is int for token in each)
        if not isinstance(each, str) and not (tokens and each):
            raise UsageError(
                "a prompt is a text or tokens", where=where, found=str(each)[:40] or "an empty list"
            )
    return [tuple(each) if isinstance(each, list) else each for each in prompt]


async def complete(call: Call, body: CompletionBody) -> None:
    """Continue prompts."""
    prompts, choices = prompts_of(body.prompt), 1 if body.n is None else body.n
    if not 1 <= choices * len(prompts) <= MOST_CHOICES or choices < 1:
        raise UsageError("too many choices, or none", where="n", expected=f"1 to {MOST_CHOICES}")
    if body.logprobs is not None and not 0 <= body.logprobs <= MOST_LOGPROBS:
        raise UsageError("not a number of tokens", where="logprobs", expected="0 to 20")
    measures = body.echo and body.logprobs is not None
    if measures and body.stream:
        raise UsageError("echoed log-probabilities come in no stream", where="echo")
    call.facts |= {"model": body.model, "prompts": len(prompts)}
    async with call.service.pool.lease(body.model) as served:
        asked: list[GenerateRequest] = []
        for prompt in prompts:
            request = prompt_request(call, served, prompt, body, measures)
            asked += seeded(request, choices)
        replies = begin(call, served, [(each, PlainReply()) for each in asked])
        written = CompletionWriter(call, body, served, asked, choices)
        if body.stream:
            await call.stream(HttpStream(written.events(replies)))
        else:
            wholes = await read_whole(replies, len(asked))
            await call.answer(HttpAnswer(written.whole(wholes)))


def prompt_request(
    call: Call, served: ServedModel, prompt: Any, body: CompletionBody, measures: bool
) -> GenerateRequest:
    """The request of one prompt, in tokens. Raises: UsageError, ContextExceeded."""
    options = sampling_options(body)
    most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    options["max_tokens"] = None if most < 0 else most
    options["logprobs"] = body.logprobs
    options["prompt_logprobs"] = measures
    tokens = served.loaded.tokens_of(prompt)
    check_room(served, len(tokens))
    request = generate_request(call, served, tokens, options)
    return replace(request, prompt=tokens)


class CompletionWriter:
    """Writes the answer to one completion."""

    def __init__(
        self,
        call: Call,
        body: CompletionBody,
        served: ServedModel,
        asked: Sequence[GenerateRequest],
        choices: int,
    ) -> None:
        self._call, self._body, self._served = call, body, served
        self._asked, self._choices = asked, choices
        self._head = {
            "id": f"cmpl-{call.id}",
            "object": "text_completion",
            "created": now(),
            "model": served.name,
        }
        self._has_usage = body.stream_options is not None and body.stream_options.include_usage

    def whole(self, wholes: Sequence[tuple[WholeReply, Ending]]) -> dict[str, Any]:
        """A text_completion."""
        endings = [ending for _, ending in wholes]
        note_usage(self._call, endings)
        choices = [self._choice(index, *each) for index, each in enumerate(wholes)]
        return {
            **self._head,
            "choices": choices,
            "usage": self._usage(endings),
            "timings": timings(endings[0]),
        }

    def _choice(self, index: int, whole: WholeReply, ending: Ending) -> dict[str, Any]:
        text, tokens, offset = whole.content, list(whole.logprobs), 0
        if self._body.echo:
            echoed = self._prompt_text(index)
            text = echoed + text
            tokens = [*(ending.generation.prompt_logprobs or ()), *tokens]
            offset = 0
        has_logprobs = self._body.logprobs is not None
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs_object(tokens, offset) if has_logprobs else None,
            "finish_reason": FINISH[ending.finish],
        }

    def _prompt_text(self, index: int) -> str:
        """The prompt as it was sent, or the text of its tokens."""
        prompt = prompts_of(self._body.prompt)[index // self._choices]
        return prompt if isinstance(prompt, str) else self._served.loaded.tokenizer.decode(prompt)

    def _usage(self, endings: Sequence[Ending]) -> dict[str, Any]:
        firsts = endings[:: self._choices]
        prompt = sum(each.generation.prompt_tokens for each in firsts)
        completion = sum(each.generation.completion_tokens for each in endings)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(each.generation.cached_tokens for each in firsts)
            },
        }

    async def events(self, replies: Replies) -> AsyncGenerator[bytes]:
        """Chunks of a text_completion."""
        endings: dict[int, Ending] = {}
        if self._body.echo:
            for index in range(len(self._asked)):
                yield self._chunk(index, self._prompt_text(index))
        offsets = [0] * len(self._asked)
        async with reading(replies) as beats:
            async for beat in beats:
                if beat.is_silence:
                    yield PING
                    continue
                text = "".join(each.text for each in beat.pieces if isinstance(each, Content))
                finish = None if beat.ending is None else FINISH[beat.ending.finish]
                logprobs = None
                if self._body.logprobs is not None and beat.logprobs:
                    logprobs = logprobs_object(beat.logprobs, offsets[beat.choice])
                    offsets[beat.choice] += sum(len(each.text) for each in beat.logprobs)
                if beat.ending is not None:
                    endings[beat.choice] = beat.ending
                if text or finish or logprobs:
                    yield self._chunk(beat.choice, text, finish, logprobs)
        ordered = [endings[index] for index in sorted(endings)]
        note_usage(self._call, ordered)
        if self._has_usage:
            yield event({**self._head, "choices": [], "usage": self._usage(ordered)})
        yield DONE

    def _chunk(
        self, index: int, text: str, finish: str | None = None, logprobs: Any = None
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        more = {"usage": None} if self._has_usage else {}
        return event({**self._head, "choices": [choice], **more})


def logprobs_object(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Log-probabilities as completions have them; of equal texts the likeliest token's."""
    offsets: list[int] = []
    tops: list[dict[str, float | None] | None] = []
    for each in tokens:
        offsets.append(offset)
        offset += len(each.text)
        top: dict[str, float | None] | None = None
        if each.logprob is not None:
            top = {}
            for other in each.top:
                top.setdefault(other.text, other.logprob)
            top.setdefault(each.text, each.logprob)
        tops.append(top)
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


ROUTES = (
    Route("POST", "/v1/completions", complete, CompletionBody, FIELDS, "Continue or score texts"),
)
