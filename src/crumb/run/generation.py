"""What a generation gives, and one sequence's way from logits to text.

In: a GenerateRequest, the prompt's tokens, then the logits after each token. Out: TextPieces as
they become certain, at the end a Generation. Python, the command line and the server share these.
No clock and no model here: times, memory and prompt logprobs are handed to `result`.
The pieces of a generation put together are its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from crumb.requests.generate_request import GenerateRequest
from crumb.run.sampling import Measured, Sampler, measure
from crumb.run.stop_strings import StopStrings
from crumb.structure.guide import Guide
from crumb.tokenizer.detokenizer import Detokenizer
from crumb.tokenizer.tokenizer import Tokenizer


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # an end token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    CANCELLED = "cancelled"
    ERROR = "error"  # of this request alone; the generation has it


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and what the model itself gave it."""

    token: int
    text: str  # of the token alone; half a character is U+FFFD
    logprob: float | None  # in nats; None for the first token of a prompt, which nothing predicts
    top: tuple[TokenLogprob, ...] = ()  # the most likely tokens in its place, best first


@dataclass(frozen=True)
class Timings:
    """How long a generation took."""

    queue_seconds: float  # until it was begun
    prompt_seconds: float  # from then until the prompt was read
    decode_seconds: float  # from then to the last token
    prompt_tokens_per_second: float  # of those that were not cached
    decode_tokens_per_second: float


@dataclass(slots=True)
class Guesses:
    """What became of the guesses for one sequence."""

    drafts: int = 0  # steps that ran some
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of those, the ones that were chosen

    def add(self, drafted: int, right: int) -> None:
        """A step ran so many guesses, and so many of them were right."""
        self.drafts += 1
        self.drafted_tokens += drafted
        self.accepted_tokens += right


NO_GUESSES = Guesses()


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What one token adds; text lags behind tokens while it may still change."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token, if asked


@dataclass(frozen=True)
class Generation:
    """What became of a request."""

    text: str  # up to a stop string
    tokens: tuple[int, ...]  # all that were generated, but the end token
    finish_reason: FinishReason
    stop_string: str | None  # the one that ended it
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, read before and kept
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_logprobs: tuple[TokenLogprob, ...] | None
    timings: Timings
    peak_memory_bytes: int
    seed: int | None = None  # of the draws; None: nothing was drawn
    error: Exception | None = None  # what ended it, where the finish reason is error
    drafted_tokens: int = 0  # guessed from the text so far and run together
    accepted_tokens: int = 0  # of those, the ones that were chosen
    drafts: int = 0  # steps that ran guesses
    restored_tokens: int = 0  # of the cached ones, read from disk


def token_logprob(tokenizer: Tokenizer, measured: Measured) -> TokenLogprob:
    """A measured token with its texts."""
    text = tokenizer.token_text
    top = tuple(TokenLogprob(token, text(token), logprob) for token, logprob in measured.top)
    return TokenLogprob(measured.token, text(measured.token), measured.logprob, top)


class PromptMeter:
    """Measures a prompt's tokens from its logits, block by block, while their rows are valid."""

    def __init__(self, tokens: Sequence[int], top: int, first: int = 1) -> None:
        """`first`: the token that is measured first; those before it are only read."""
        self._tokens, self._top, self._first = tokens, top, first
        self._measured: list[Measured] = []

    def read(self, logits: NDArray[np.float32]) -> None:
        """The next rows, one after each token. Shapes: (rows, vocabulary)."""
        begin = len(self._measured) + self._first
        for row, token in zip(logits, self._tokens[begin : begin + len(logits)], strict=False):
            self._measured.append(measure(row, token, self._top))

    def logprobs(self, tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
        """Of every token, those that were only read without, once all rows were read."""
        rows = len(self._tokens) - self._first
        assert len(self._measured) >= rows, "a row for every token but the last"
        before = self._tokens[: self._first]
        unmeasured = [TokenLogprob(each, tokenizer.token_text(each), None) for each in before]
        return (*unmeasured, *(token_logprob(tokenizer, each) for each in self._measured))


class TextState:
    """One sequence: chooses its tokens, makes its text, knows when it is finished."""

    def __init__(
        self,
        request: GenerateRequest,
        prompt_tokens: Sequence[int],
        tokenizer: Tokenizer,
        vocabulary: int,
        room_tokens: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        """`room_tokens`: how many the context has left, if that is a limit. `guide`: of its form.

        Raises: UsageError.
        """
        self._guide = guide
        self._request, self._tokenizer = request, tokenizer
        self._prompt_tokens = len(prompt_tokens)
        self._sampler = Sampler(
            request.sampling, vocabulary, prompt_tokens, request.logits_hook, guide
        )
        self._detokenizer = Detokenizer(tokenizer, prompt_tokens, tokenizer.numbers(request.marks))
        self._stops = StopStrings(request.stop)
        is_held = request.format is not None and not request.format.opens
        goes_on = request.ignore_end and not is_held  # a form may have no other end
        self._ends = frozenset() if goes_on else tokenizer.end_tokens
        limits = [limit for limit in (request.max_tokens, room_tokens) if limit is not None]
        self._limit_tokens = min(limits, default=None)
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.finish_reason = FinishReason.LENGTH if self._limit_tokens == 0 else None
        self._stop_string: str | None = None
        self.error: Exception | None = None

    @property
    def limit_tokens(self) -> int | None:
        """How many tokens there will be at most."""
        return self._limit_tokens

    @property
    def finished(self) -> bool:
        """Whether no token follows; so from the start when none is wanted."""
        return self.finish_reason is not None

    @property
    def generated_tokens(self) -> int:
        """How many tokens were chosen so far, the end token not counted."""
        return len(self._tokens)

    @property
    def next_token(self) -> int:
        """The token to run next; only while unfinished and after a first `advance`."""
        assert self.finish_reason is None, "nothing follows"
        return self._tokens[-1]

    def advance(self, logits: NDArray[np.float32]) -> TextPiece:
        """Choose a token from the logits after the last one. Shapes: (vocabulary,).

        Raises: CheckpointError for logits that are not numbers, and what the request's hook raises.
        """
        assert self.finish_reason is None, "nothing follows"
        was_thinking = self._guide is not None and self._guide.is_thinking
        token = self._sampler.choose(logits, self._tokens)
        if token in self._ends:
            return self._finish(FinishReason.STOP, (), ())
        self._tokens.append(token)
        measured: tuple[TokenLogprob, ...] = ()
        if self._request.logprobs is not None:
            of_token = measure(logits, token, self._request.logprobs)
            measured = (token_logprob(self._tokenizer, of_token),)
            self._logprobs += measured
        text = self._detokenizer.push(token)
        if self._request.stop and not was_thinking:
            text = self._watch(text)
        if self._stop_string is not None:
            self.finish_reason = FinishReason.STOP
        elif self._guide is not None and self._guide.is_done:
            return self._finish(FinishReason.STOP, (token,), measured, text)
        elif len(self._tokens) == self._limit_tokens:
            return self._finish(FinishReason.LENGTH, (token,), measured, text)
        self._texts.append(text)
        return TextPiece(text, (token,), self.finish_reason, measured)

    def cancel(self) -> TextPiece:
        """End here; the text that was held back is given out."""
        assert not self.finished or self._limit_tokens == 0, "it has ended already"
        return self._finish(FinishReason.CANCELLED, (), ())

    def fail(self, error: Exception) -> TextPiece:
        """End here because of an error; no further text is given out."""
        self.error, self.finish_reason = error, FinishReason.ERROR
        return TextPiece("", (), FinishReason.ERROR)

    def result(
        self,
        *,
        timings: Timings,
        cached_tokens: int = 0,
        restored_tokens: int = 0,
        guesses: Guesses = NO_GUESSES,
        peak_memory_bytes: int = 0,
        prompt_logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> Generation:
        """The whole generation, once it is finished."""
        assert self.finish_reason is not None, "not finished"
        return Generation(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            finish_reason=self.finish_reason,
            stop_string=self._stop_string,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._tokens),
            cached_tokens=cached_tokens,
            logprobs=None if self._request.logprobs is None else tuple(self._logprobs),
            prompt_logprobs=prompt_logprobs,
            timings=timings,
            peak_memory_bytes=peak_memory_bytes,
            seed=self._sampler.seed,
            error=self.error,
            drafted_tokens=guesses.drafted_tokens,
            accepted_tokens=guesses.accepted_tokens,
            drafts=guesses.drafts,
            restored_tokens=restored_tokens,
        )

    def _finish(
        self,
        reason: FinishReason,
        tokens: tuple[int, ...],
        measured: tuple[TokenLogprob, ...],
        text: str = "",
    ) -> TextPiece:
        """The last piece: with what the detokenizer and the stop strings held back."""
        text += self._watch(self._detokenizer.finish())
        if self._stop_string is None:
            text += self._stops.finish()
        elif reason is FinishReason.LENGTH:
            reason = FinishReason.STOP
        self.finish_reason = reason
        self._texts.append(text)
        return TextPiece(text, tokens, reason, measured)

    def _watch(self, text: str) -> str:
        safe, self._stop_string = self._stops.push(text)
        return safe
