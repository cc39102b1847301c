"""Choose the next token from logits: greedy, or drawn from what the settings leave of them.

In: logits (vocabulary,) f32, a Sampling, the tokens so far. Out: a token; `measure` gives logprobs.
The order: logit_bias, repetition_penalty, frequency and presence penalty, what the answer's form
allows (`structure/guide.py`); then, unless greedy,
temperature, top_k, top_p of what top_k left, min_p, one draw. Equal logits: the lowest token first.
Refuses tokens outside the vocabulary, and logits that are not numbers.
Source: the order of the filters is that of transformers' logits warpers (llama.cpp applies
temperature last, vLLM min_p first). Unlike transformers, top_k keeps exactly k when tied.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError, UsageError
from crumb.kernels.draw import draw
from crumb.requests.generate_request import LogitsHook, Sampling
from crumb.structure.guide import Guide

Logits = NDArray[np.float32] | NDArray[np.float64]
Tokens = NDArray[np.intp]

SEED_BITS = 32
"""Of a seed that nobody gave: short enough to be typed again."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A token and what the model itself gave it: before biases, penalties, filters."""

    token: int
    logprob: float  # in nats
    top: tuple[tuple[int, float], ...]  # the most likely tokens, best first


class Sampler:
    """Chooses one sequence's tokens; what it chose counts for the penalties.

    The draw for a token depends on the seed and the token's place in the sequence alone, so it is
    the same in any batch, and a text continued from its own tokens goes on as it would have.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: int,
        prompt_tokens: Sequence[int] = (),
        hook: LogitsHook | None = None,
        guide: Guide | None = None,
    ) -> None:
        """`guide`: says which tokens may be chosen, and is told which was.

        Raises: UsageError when logit_bias or the prompt name a token outside the vocabulary.
        """
        self._guide = guide
        self._sampling, self._vocabulary, self._hook = sampling, vocabulary, hook
        biases = dict(sampling.logit_bias)
        _check_tokens("logit_bias", biases, vocabulary)
        self._biased = np.fromiter(biases.keys(), np.intp, len(biases))
        self._biases = np.fromiter(biases.values(), np.float64, len(biases))
        self._seen = _Seen(sampling, vocabulary, prompt_tokens) if sampling.has_penalties else None
        self._adjusts = bool(biases) or self._seen is not None
        self._random: np.random.PCG64 | None = None
        self.seed: int | None = None  # of the draws; None where nothing is drawn
        if sampling.temperature > 0.0:
            self.seed = secrets.randbits(SEED_BITS) if sampling.seed is None else sampling.seed
            self._random = np.random.PCG64(self.seed)
            self._random.advance(len(prompt_tokens))

    def choose(self, logits: NDArray[np.float32], tokens: Sequence[int] = ()) -> int:
        """The next token after those generated so far. Shapes: logits (vocabulary,).

        Raises: CheckpointError, UsageError, and what the request's hook raises.
        """
        assert len(logits) == self._vocabulary, logits.shape
        own = logits if self._hook is None else self._hooked(logits, self._hook, tuple(tokens))
        scores = self._adjusted(own) if self._adjusts else own
        allowed = None if self._guide is None else self._guide.allowed()
        tokens_of = None if allowed is None else np.flatnonzero(allowed)
        if tokens_of is not None:  # often few: the draw is the faster for it
            scores = scores[tokens_of]
        place = int(scores.argmax())  # the first NaN, if there is one
        if not math.isfinite(scores[place]):
            raise self._not_numbers(logits)
        if self._random is not None:
            place = self._draw(_as_floats(scores, place), self._random)
        token = place if tokens_of is None else int(tokens_of[place])
        if self._seen is not None:
            self._seen.add(token)
        if self._guide is not None:
            self._guide.accept(token)
        return token

    def _hooked(
        self, logits: NDArray[np.float32], hook: LogitsHook, tokens: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """The logits as the request's hook leaves them."""
        edited = logits.copy()
        answer = hook(tokens, edited)
        if answer is None:
            return edited
        if np.shape(answer) != edited.shape:
            raise UsageError(
                "a hook's answer does not fit the vocabulary",
                where="logits_hook",
                expected=f"shape {edited.shape}, or None",
                found=np.shape(answer),
            )
        if answer.dtype == np.bool_:
            edited[np.logical_not(answer)] = -np.inf
        else:
            edited += answer
        return edited

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        scores = logits.astype(np.float64)
        scores[self._biased] += self._biases
        if self._seen is not None:
            self._seen.penalize(scores)
        return scores

    def _draw(self, scores: NDArray[np.float32], random: np.random.PCG64) -> int:
        """One draw from what the filters leave; gives a place in the scores."""
        sampling = self._sampling
        filters = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        uniform = (int(random.random_raw()) >> 11) * 2.0**-53
        return draw(np.ascontiguousarray(scores), *filters, uniform)

    def _not_numbers(self, logits: NDArray[np.float32]) -> Exception:
        if math.isfinite(logits.max()):
            where = "logit_bias" if self._hook is None else "logits_hook"
            where = where if self._guide is None else f"response_format, {where}"
            return UsageError("no token may be chosen", where=where, found="-inf for all")
        return CheckpointError(
            "the model's logits are not numbers",
            found=float(logits.max()),
            do="Its weights are damaged, or too large for its activations' type",
        )


class _Seen:
    """How often each token stands in the last tokens of a sequence."""

    def __init__(self, sampling: Sampling, vocabulary: int, prompt_tokens: Sequence[int]) -> None:
        self._sampling = sampling
        window = sampling.penalty_window_tokens
        recent = prompt_tokens[-window:] if window else prompt_tokens
        _check_tokens("the prompt", recent, vocabulary)
        self._counts = np.bincount(np.asarray(recent, np.intp), minlength=vocabulary)
        self._generated = np.zeros(vocabulary, np.int64)
        self._window = deque(((token, False) for token in recent) if window else ())

    def add(self, token: int) -> None:
        """A token was generated; the oldest may leave the window."""
        self._counts[token] += 1
        self._generated[token] += 1
        if self._sampling.penalty_window_tokens:
            self._window.append((token, True))
            if len(self._window) > self._sampling.penalty_window_tokens:
                oldest, was_generated = self._window.popleft()
                self._counts[oldest] -= 1
                self._generated[oldest] -= was_generated

    def penalize(self, scores: NDArray[np.float64]) -> None:
        """Lower the scores of tokens that were there, in place."""
        sampling = self._sampling
        if sampling.repetition_penalty != 1.0:
            seen = np.flatnonzero(self._counts)
            before, penalty = scores[seen], sampling.repetition_penalty
            scores[seen] = np.where(before > 0.0, before / penalty, before * penalty)
        generated = np.flatnonzero(self._generated)
        scores[generated] -= sampling.presence_penalty
        scores[generated] -= sampling.frequency_penalty * self._generated[generated]


def measure(logits: NDArray[np.float32], token: int, top: int = 0) -> Measured:
    """What the model gives a token, and its `top` most likely tokens. Shapes: (vocabulary,)."""
    logprobs = log_softmax(logits)
    best = most_likely(logits, min(top, len(logits))) if top else np.empty(0, np.intp)
    pairs = zip(best.tolist(), logprobs[best].tolist(), strict=True)
    return Measured(token, float(logprobs[token]), tuple(pairs))


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Logprobs in nats, computed in f64 from the largest logit down. Shapes: (..., vocabulary)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def most_likely(values: Logits, count: int) -> Tokens:
    """The `count` largest, best first, of equal ones the lowest index first. Shapes: (values,)."""
    size = len(values)
    if count == 1:
        return np.asarray([values.argmax()], np.intp)
    largest = np.arange(size)
    if count < size:
        smallest = np.partition(values, size - count)[size - count]
        above = np.flatnonzero(values > smallest)
        equal = np.flatnonzero(values == smallest)[: count - len(above)]
        largest = np.concatenate([above, equal])
    order: Tokens = largest[np.lexsort((largest, -values[largest]))]
    return order


def _as_floats(scores: Logits, best: int) -> NDArray[np.float32]:
    """In f32; biased ones from the best down, for they may be farther apart than f32 goes."""
    if scores.dtype == np.float32:
        return scores.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        floats: NDArray[np.float32] = (scores - scores[best]).astype(np.float32)
    return floats


def _check_tokens(where: str, tokens: Any, vocabulary: int) -> None:
    outside = [token for token in tokens if not 0 <= token < vocabulary]
    if outside:
        raise UsageError(
            "a token is not in the model's vocabulary",
            where=where,
            expected=f"0 to {vocabulary - 1}",
            found=outside[0],
        )
