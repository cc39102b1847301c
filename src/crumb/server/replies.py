"""Replies on their way: the one stream that every protocol writes from.

In: a model, generate requests and a parser for each. Out: Beats, in the order they arrive, then an
Ending for each sequence. Whoever stops reading cancels all that is left of them.
Refuses, with TimeExceeded, to go on after the time of a request. A sequence's error is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from crumb.errors import TimeExceeded
from crumb.pieces import Content, Piece, Reasoning, ReplyParser, ToolCallStart
from crumb.requests.generate_request import GenerateRequest
from crumb.run.generation import FinishReason, Generation, TextPiece, TokenLogprob
from crumb.run.handle import Handle
from crumb.run.language_model import LanguageModel
from crumb.server.arrivals import Arrivals, Inbox
from crumb.server.metrics import Metrics
from crumb.server.waves import Wave


class Finish(StrEnum):
    """Why a reply ended; each protocol has words of its own for it."""

    END = "end"  # the model ended it
    STOP_STRING = "stop_string"
    MAX_TOKENS = "max_tokens"
    CONTEXT = "context"  # it is full
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known when a reply has ended."""

    finish: Finish
    generation: Generation
    reasoning_tokens: int
    first_token_seconds: float  # from the request to the first token


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far a prompt is read."""

    prompt_tokens: int
    cached_tokens: int
    read_tokens: int  # the cached ones included
    seconds: float  # since the request


@dataclass(frozen=True, slots=True)
class Beat:
    """What arrived together of one reply. Nothing at all: so much time has passed in silence."""

    choice: int = 0
    pieces: tuple[Piece, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    ending: Ending | None = None
    tokens: int = 0  # of the reply so far

    @property
    def is_silence(self) -> bool:
        return not self.pieces and not self.logprobs and self.ending is None


@dataclass
class _Sequence:
    """One reply's state."""

    request: GenerateRequest
    parser: ReplyParser
    submitted: float
    most_calls: int | None = None
    calls: int = 0
    is_cut: bool = False  # the call after the last that may be has begun
    tokens: int = 0
    reasoning_tokens: int = 0
    is_reasoning: bool = False
    is_finished: bool = False
    first_token: float | None = None
    last_token: float = 0.0
    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def take(self, piece: TextPiece) -> None:
        """Some more text."""
        new = list(self.parser.feed(piece.text)) if piece.text else []
        if piece.finish_reason is not None:
            new += self.parser.finish()
            self.is_finished = True
        for each in new:
            if isinstance(each, ToolCallStart) and self.calls == self.most_calls:
                self.is_cut = True
            if self.is_cut:
                continue
            self.pieces.append(each)
            if isinstance(each, Content | Reasoning):
                self.is_reasoning = isinstance(each, Reasoning)
            elif isinstance(each, ToolCallStart):
                self.is_reasoning = False
                self.calls += 1
        self.tokens += len(piece.tokens)
        self.reasoning_tokens += len(piece.tokens) if self.is_reasoning else 0
        self.logprobs += piece.logprobs

    def beat(self, index: int, ending: Ending | None = None) -> Beat:
        """What was taken since the last one."""
        pieces, self.pieces = tuple(self.pieces), []
        logprobs, self.logprobs = tuple(self.logprobs), []
        return Beat(index, pieces, logprobs, ending, self.tokens)

    def ending(self, generation: Generation) -> Ending:
        first = self.first_token or time.perf_counter()
        return Ending(
            self._finish(generation), generation, self.reasoning_tokens, first - self.submitted
        )

    def _finish(self, generation: Generation) -> Finish:
        if generation.finish_reason is FinishReason.LENGTH:
            limit = self.request.max_tokens
            is_asked = limit is not None and generation.completion_tokens >= limit
            return Finish.MAX_TOKENS if is_asked else Finish.CONTEXT
        if self.calls:
            return Finish.TOOL_CALLS
        return Finish.END if generation.stop_string is None else Finish.STOP_STRING


class Replies:
    """The replies to one request of a client."""

    def __init__(
        self,
        model: LanguageModel,
        asked: Sequence[tuple[GenerateRequest, ReplyParser]],
        arrivals: Arrivals,
        metrics: Metrics,
        *,
        id: str,
        silence_seconds: float | None,
        limit_seconds: float | None,
        most_calls: int | None = None,
    ) -> None:
        """`most_calls`: of tools in one reply. Raises: QueueFull, UsageError; then nothing runs."""
        self._inbox, self._metrics = Inbox(arrivals), metrics
        self._silence_seconds = silence_seconds
        self.progress_seconds: float | None = None  # longest silence until the first token
        begin = time.perf_counter()
        self._limit_seconds = limit_seconds
        self._deadline = None if limit_seconds is None else begin + limit_seconds
        self._sequences = [_Sequence(*each, begin, most_calls) for each in asked]

        def submit(index: int) -> Handle[Generation]:
            return model.submit(asked[index][0], id=id, sink=self._inbox.sink(index))

        self._wave = Wave(len(asked), submit)
        try:
            self._wave.submit_more()
        except BaseException:
            self.cancel()
            raise

    @property
    def prompt_tokens(self) -> int:
        """Of the first prompt."""
        return len(self._sequences[0].request.prompt)

    @property
    def progress(self) -> PromptProgress | None:
        """Of the first prompt; None once tokens follow it."""
        first, handle = self._sequences[0], self._wave.active.get(0)
        if first.tokens or handle is None:
            return None
        times = handle.times
        seconds = time.perf_counter() - first.submitted
        return PromptProgress(self.prompt_tokens, times.cached_tokens, times.read_tokens, seconds)

    def cancel(self) -> None:
        """End all that is left; nobody reads it."""
        self._metrics.left(len(self._wave.active))
        self._wave.cancel()

    def __aiter__(self) -> AsyncGenerator[Beat]:
        return self._beats()

    async def _beats(self) -> AsyncGenerator[Beat]:
        """Raises: a sequence's error, TimeExceeded."""
        try:
            left = len(self._sequences)
            while left:
                arrived = await self._inbox.next(self._patience())
                touched: dict[int, None] = {}
                for index, piece in arrived:
                    if piece is None:
                        left -= 1
                        touched.pop(index, None)
                        yield self._end(index)
                    else:
                        self._take(index, piece)
                        touched[index] = None
                for index in touched:
                    yield self._observed(index)
                if not arrived:
                    self._check_deadline()
                    yield Beat()
        finally:
            self.cancel()

    def _take(self, index: int, piece: TextPiece) -> None:
        sequence = self._sequences[index]
        sequence.take(piece)
        if sequence.is_cut:
            self._wave.active[index].cancel()

    def _patience(self) -> float | None:
        """Seconds to wait for something."""
        limits = [self._silence_seconds]
        if self._deadline is not None:
            limits.append(max(self._deadline - time.perf_counter(), 0.0))
        if not self._sequences[0].tokens:
            limits.append(self.progress_seconds)
        return min((each for each in limits if each is not None), default=None)

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.perf_counter() >= self._deadline:
            raise TimeExceeded(
                "this request took longer than it may",
                expected=f"at most {self._limit_seconds:g} seconds",
                do="Ask for fewer tokens, or start the server with a larger --request-seconds",
            )

    def _observed(self, index: int) -> Beat:
        """What arrived of a sequence; how long that took goes to the metrics."""
        each, now = self._sequences[index], time.perf_counter()
        if each.first_token is None and each.tokens:
            each.first_token = now
            self._metrics.first_token(now - each.submitted)
        elif each.tokens:
            self._metrics.next_token(now - each.last_token)
        each.last_token = now
        return each.beat(index)

    def _end(self, index: int) -> Beat:
        each, handle = self._sequences[index], self._wave.end(index)
        if handle.error is not None:
            raise handle.error
        generation = handle.outcome(0)
        assert generation is not None, "it has ended"
        if generation.finish_reason is FinishReason.CANCELLED and not each.is_cut:
            raise asyncio.CancelledError("the request was cancelled")
        ending = each.ending(generation)
        self._metrics.finished(ending.finish.value, generation)
        return each.beat(index, ending)


@asynccontextmanager
async def reading(replies: Replies) -> AsyncIterator[AsyncIterator[Beat]]:
    """The beats of replies; however the `with` is left, nothing of them goes on."""
    beats = aiter(replies)
    try:
        yield beats
    finally:
        replies.cancel()
        await beats.aclose()


@dataclass
class WholeReply:
    """A reply that was read to its end."""

    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def content(self) -> str:
        return "".join(each.text for each in self.pieces if isinstance(each, Content))

    @property
    def reasoning(self) -> str:
        return "".join(each.text for each in self.pieces if isinstance(each, Reasoning))


async def read_whole(replies: Replies, choices: int) -> list[tuple[WholeReply, Ending]]:
    """All replies, once they have ended. Raises: what reading them raises."""
    wholes = [WholeReply() for _ in range(choices)]
    async with reading(replies) as beats:
        async for beat in beats:
            whole = wholes[beat.choice]
            whole.pieces += beat.pieces
            whole.logprobs += beat.logprobs
            whole.ending = beat.ending or whole.ending
    ended = [(whole, whole.ending) for whole in wholes]
    return [(whole, ending) for whole, ending in ended if ending is not None]
