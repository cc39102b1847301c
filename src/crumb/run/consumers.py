"""What becomes of a sequence's rows: a text, a score, a vector, or the logits themselves.

In: a prompt's tokens, then rows of logits or features as steps compute them. Out: the result that
a Handle gives. A consumer is made in the thread that asks, read by the scheduler's thread alone,
and its value is put together in the thread that waits. Rows are valid only while they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError
from crumb.machine.memory import peak_memory_bytes
from crumb.requests.generate_request import GenerateRequest, Prompt
from crumb.requests.reading_request import EmbedRequest, ScoreRequest
from crumb.run.generation import (
    Generation,
    Guesses,
    PromptMeter,
    TextPiece,
    TextState,
    Timings,
    TokenLogprob,
)
from crumb.run.source_texts import Reading
from crumb.run.speculation import Speculator
from crumb.structure.guide import Guide, make_guide
from crumb.structure.matcher import GrammarVocabulary, read_vocabulary
from crumb.tokenizer.tokenizer import Tokenizer

Floats = NDArray[np.float32]
Value = TypeVar("Value")


@dataclass(slots=True)
class Times:
    """When things happened to a request, by the clock of time.perf_counter."""

    submitted: float
    began: float = 0.0  # it got its sequence
    prompt_done: float = 0.0
    ended: float = 0.0
    cached_tokens: int = 0  # of the prompt, taken from the cache
    read_tokens: int = 0  # of the prompt so far, the cached ones included
    restored_tokens: int = 0  # of the cached ones, read from disk
    guesses: Guesses = field(default_factory=Guesses)

    def end(self, now: float) -> None:
        """What has not happened by now never will."""
        self.began = self.began or now
        self.prompt_done = self.prompt_done or now
        self.ended = now


@dataclass(frozen=True)
class ModelFacts:
    """What a consumer needs to know of the model."""

    tokenizer: Tokenizer
    vocabulary: int
    context_tokens: int
    start: int | None = None  # of a model that reads a source: the token before every answer

    @property
    def reading(self) -> Reading:
        """How its requests are read."""
        return Reading(self.tokenizer, self.start)

    @cached_property
    def grammar_vocabulary(self) -> GrammarVocabulary:
        """Made when a text is first held to a form. Raises: CheckpointError."""
        return read_vocabulary(self.tokenizer, self.vocabulary)

    def guide(self, request: GenerateRequest) -> Guide | None:
        """What a request's text is held to. Raises: UsageError, CheckpointError."""
        vocabulary = None if request.format is None else self.grammar_vocabulary
        return make_guide(
            self.tokenizer, vocabulary, self.vocabulary, request.format, request.thinking
        )


class Consumer(Generic[Value]):
    """What the scheduler asks of a request. This one only reads its prompt."""

    reads_features = False  # rows are what the head would read, not logits
    speculator: Speculator | None = None  # guesses the tokens that follow

    def __init__(self, prompt: Sequence[int], source: Sequence[int] = ()) -> None:
        """`source`: what a model with an encoder reads before the prompt."""
        self.prompt, self.source = prompt, source

    @property
    def first_row(self) -> int:
        """The first token of the prompt whose row leaves the step; those behind it leave too."""
        return max(len(self.prompt) - 1, 0)

    @property
    def most_tokens(self) -> int:
        """The longest that the sequence may become: what the cache must have room for."""
        return len(self.prompt)

    @property
    def follows(self) -> bool:
        """Whether tokens are to be generated after the prompt."""
        return False

    @property
    def next_token(self) -> int:
        """The token to run next, while tokens follow."""
        raise NotImplementedError

    def read(self, rows: Floats) -> None:
        """Rows of the prompt from the first one on, in order."""

    def advance(self, logits: Floats) -> TextPiece:
        """The logits after the last token, (vocabulary,): choose the next one."""
        raise NotImplementedError

    def cancel(self) -> TextPiece | None:
        """End early; what was held back."""
        return None

    def fail(self, error: Exception) -> TextPiece | None:
        """End because of an error."""
        del error
        return None

    def value(self, times: Times) -> Value | None:
        """The result, once it has ended; None where there is none."""
        raise NotImplementedError


class TextConsumer(Consumer[Generation]):
    """Generates a text, and measures the prompt where that is asked."""

    def __init__(self, request: GenerateRequest, prompt: Sequence[int], facts: ModelFacts) -> None:
        source, prompt = facts.reading.split(prompt)
        super().__init__(prompt, source)
        if source and request.prompt_logprobs:
            raise _unscored("prompt_logprobs")
        room = max(facts.context_tokens - len(prompt) + 1, 0)  # the last token need not be fed
        self._tokenizer = facts.tokenizer
        guide = facts.guide(request)
        self._state = TextState(request, prompt, facts.tokenizer, facts.vocabulary, room, guide)
        self._meter = PromptMeter(prompt, request.logprobs or 0)
        self._is_measured = request.prompt_logprobs
        self.speculator = Speculator((*source, *prompt)) if request.speculate else None

    @property
    def first_row(self) -> int:
        return 0 if self._is_measured else super().first_row

    @property
    def most_tokens(self) -> int:
        limit = self._state.limit_tokens
        assert limit is not None, "the context is a limit"
        return len(self.prompt) + max(limit - 1, 0)

    @property
    def follows(self) -> bool:
        return self._state.finish_reason is None

    @property
    def next_token(self) -> int:
        return self._state.next_token

    def read(self, rows: Floats) -> None:
        if self._is_measured:
            self._meter.read(rows)

    def advance(self, logits: Floats) -> TextPiece:
        piece = self._state.advance(logits)
        if self.speculator is not None and piece.finish_reason is None:
            self.speculator.extend(self._state.next_token)
        return piece

    def cancel(self) -> TextPiece:
        self._is_measured = False
        return self._state.cancel()

    def fail(self, error: Exception) -> TextPiece:
        self._is_measured = False
        return self._state.fail(error)

    def value(self, times: Times) -> Generation:
        read = len(self.source or self.prompt)
        computed = read - times.cached_tokens
        prompt_seconds = times.prompt_done - times.began
        decode_seconds = times.ended - times.prompt_done
        decoded = max(self._state.generated_tokens - 1, 0)
        generation = self._state.result(
            timings=Timings(
                times.began - times.submitted,
                prompt_seconds,
                decode_seconds,
                computed / prompt_seconds if prompt_seconds > 0 else 0.0,
                decoded / decode_seconds if decode_seconds > 0 else 0.0,
            ),
            cached_tokens=times.cached_tokens,
            restored_tokens=times.restored_tokens,
            guesses=times.guesses,
            peak_memory_bytes=peak_memory_bytes(),
            prompt_logprobs=self._meter.logprobs(self._tokenizer) if self._is_measured else None,
        )
        return replace(generation, prompt_tokens=read)


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text."""

    tokens: tuple[TokenLogprob, ...]
    logprob: float  # sum over all tokens that were scored
    perplexity: float  # exp of minus the mean
    seconds: float


class ScoreConsumer(Consumer[Score]):
    """Measures the tokens of a text from one on, or those of a target."""

    def __init__(self, request: ScoreRequest, prompt: Sequence[int], facts: ModelFacts) -> None:
        source, before = facts.reading.split(prompt)
        if source and request.target is None:
            raise _unscored("target")
        if request.target is not None:
            target = facts.reading.target(request.target)
            request = replace(request, first=max(len(before), 1))
            prompt = (*before, *target)
        super().__init__(prompt, source)
        if not 0 < request.first < max(len(prompt), 2):
            raise UsageError(
                "there is no such token to score",
                where="first",
                expected=f"1 to {len(prompt) - 1}",
                found=request.first,
            )
        self._first, self._tokenizer = request.first, facts.tokenizer
        self._meter = PromptMeter(prompt, request.top, request.first)

    @property
    def first_row(self) -> int:
        return self._first - 1

    def read(self, rows: Floats) -> None:
        self._meter.read(rows)

    def value(self, times: Times) -> Score:
        tokens = self._meter.logprobs(self._tokenizer)
        logprobs = [each.logprob for each in tokens if each.logprob is not None]
        total = sum(logprobs)
        mean = total / max(len(logprobs), 1)
        return Score(tokens, total, float(np.exp(-mean)), times.ended - times.began)


@dataclass(frozen=True)
class Embedding:
    """A text as one vector: the mean over its tokens of what the head reads, of length 1."""

    vector: Floats  # (hidden,)
    tokens: int


class EmbeddingConsumer(Consumer[Embedding]):
    """Adds up the features of a text, token by token, so that no cut changes the sum."""

    reads_features = True
    first_row = 0

    def __init__(self, request: EmbedRequest, prompt: Sequence[int], facts: ModelFacts) -> None:
        del request
        if facts.start is not None:
            raise UsageError(
                "this model has no vector for a text",
                expected="a model without an encoder",
                do="Ask for texts or scores",
            )
        super().__init__(prompt)
        self._total: NDArray[np.float64] | None = None

    def read(self, rows: Floats) -> None:
        for row in rows.astype(np.float64):
            self._total = row if self._total is None else self._total + row

    def value(self, times: Times) -> Embedding:
        del times
        assert self._total is not None, "a text has a token"
        length = float(np.linalg.norm(self._total)) or 1.0
        return Embedding((self._total / length).astype(np.float32), len(self.prompt))


class LogitsConsumer(Consumer[Floats]):
    """Keeps the logits after every token: of a whole text, in memory."""

    first_row = 0

    def __init__(self, prompt: Sequence[int], vocabulary: int) -> None:
        super().__init__(prompt)
        self._logits = np.empty((len(prompt), vocabulary), np.float32)
        self._read_tokens = 0

    def read(self, rows: Floats) -> None:
        begin, self._read_tokens = self._read_tokens, self._read_tokens + len(rows)
        self._logits[begin : self._read_tokens] = rows

    def value(self, times: Times) -> Floats:
        del times
        return self._logits


def _unscored(where: str) -> UsageError:
    """A model with an encoder predicts no token of what it reads."""
    return UsageError(
        "this model scores what it writes, not what it reads",
        where=where,
        expected="a text to read, and a target to score",
        do="Score the pair: score(text, target)",
    )


Request = GenerateRequest | ScoreRequest | EmbedRequest

CONSUMERS: dict[type[Any], Callable[[Any, Sequence[int], ModelFacts], Consumer[Any]]] = {
    GenerateRequest: TextConsumer,
    ScoreRequest: ScoreConsumer,
    EmbedRequest: EmbeddingConsumer,
}
"""Kind of request -> what becomes of its rows."""


def make_consumer(
    request: Request, tokens_of: Callable[[Prompt], Sequence[int]], facts: ModelFacts
) -> Consumer[Any]:
    """The consumer of a request. Raises: UsageError for what is no request."""
    if type(request) not in CONSUMERS:
        raise UsageError(
            "not a request",
            expected=f"one of {', '.join(kind.__name__ for kind in CONSUMERS)}",
            found=type(request).__name__,
        )
    return CONSUMERS[type(request)](request, tokens_of(request.prompt), facts)
