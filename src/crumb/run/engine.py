"""The native engine: many sequences, each with its pages, stepped together.

In: an opened checkpoint and EngineSettings, then tokens of sequences. Out: logits of the rows that
are wanted, or the features before the head. One step runs at a time; any thread may ask.
The same tokens give the same bits whatever else is in the step, in the cache, or how they are cut.
Refuses sequences longer than the context and tokens outside the vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listed
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import UsageError
from crumb.kernels.engine import PAGE_TOKENS
from crumb.run.memory_plan import EngineSettings, MemoryPlan
from crumb.run.pages import PagePool
from crumb.run.program import build_program
from crumb.run.seats import Seats

Floats = NDArray[np.float32]


class Wanted(Enum):
    """Which rows of some tokens leave the step."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


WANTED_ROWS: dict[Wanted, Callable[[int], int]] = {
    Wanted.NONE: lambda _: 0,
    Wanted.LAST: lambda _: 1,
    Wanted.ALL: lambda count: count,
}
"""How many of a part's rows leave the step."""


@dataclass(eq=False)
class Sequence:
    """One sequence: its tokens so far and the pages that hold their keys and values."""

    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # of its beginning, found in pages of earlier sequences

    @property
    def length_tokens(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Part:
    """The next tokens of one sequence."""

    sequence: Sequence
    tokens: Listed[int]
    wanted: Wanted = Wanted.LAST


class Engine:
    """A model's native executor and its cache."""

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.plan = checkpoint.plan
        self.context_tokens = self.settings.context(self.plan)
        self._program = build_program(checkpoint, self.settings)
        self._pages = PagePool(self.settings.pages(self.plan))
        self.seats = Seats(self.settings.sequences)
        self._lock = threading.Lock()
        rows, per_sequence = self.settings.step_tokens, -(-self.context_tokens // PAGE_TOKENS)
        self._tokens = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)
        self._segments = np.zeros((rows, 4), np.int64)
        self._page_list = np.zeros(rows * per_sequence, np.int32)
        self._chosen = np.zeros(rows, np.int32)

    @property
    def memory(self) -> MemoryPlan:
        return self._program.memory

    @property
    def logits_rows(self) -> int:
        return len(self._program.logits)

    def begin(self, tokens: Listed[int], reuse: bool = True) -> Sequence:
        """A sequence for this prompt; what of its beginning lies in the cache is taken from there.

        Its `cached_tokens` first tokens need not be stepped. Raises: UsageError.
        """
        self._check_length(len(tokens))
        self._check_vocabulary(tokens)
        if not reuse:
            return Sequence()
        with self._lock:
            pages = self._pages.match(tokens)
        cached = len(pages) * PAGE_TOKENS
        return Sequence(list(tokens[:cached]), pages, cached)

    def end(self, sequence: Sequence) -> None:
        """Let a sequence's pages go; what they hold may serve later prompts."""
        with self._lock:
            self._pages.release(sequence.pages)
        sequence.pages, sequence.tokens = [], []

    @contextmanager
    def stepped(self, parts: Listed[Part]) -> Iterator[Floats]:
        """Run the tokens of all parts together; gives a view of the wanted rows' logits.

        Shapes: (wanted rows, vocabulary), valid inside the `with`, where no other step runs.
        Raises: UsageError, DoesNotFit when the cache is full; then nothing has changed.
        """
        with self._lock:
            yield self._program.logits[: self._run(parts, self._program.operations)]

    def step(self, parts: Listed[Part]) -> Floats:
        """As stepped, copied."""
        with self.stepped(parts) as logits:
            return logits.copy()

    def features(self, parts: Listed[Part]) -> Floats:
        """As step, but what the last linear layer would read, copied: (wanted rows, hidden)."""
        with self._lock:
            count = self._run(parts, self._program.operations_to_features)
            return self._program.features[:count].copy()

    def time_operations(self, timed: bool) -> None:
        """Measure the seconds of each kind of operation from now on, or stop."""
        self._program.native.set_timed(timed)

    def operation_seconds(self) -> dict[str, float]:
        """Seconds by kind of operation while they were timed."""
        return dict(self._program.native.seconds())

    def _check_length(self, length: int) -> None:
        if length > self.context_tokens:
            raise UsageError(
                "the text is longer than the context",
                expected=f"at most {self.context_tokens} tokens",
                found=length,
            )

    def _check_vocabulary(self, tokens: Listed[int]) -> None:
        if not tokens:
            return
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.plan.vocabulary:
            raise UsageError(
                "a token is not in the model's vocabulary",
                expected=f"0 to {self.plan.vocabulary - 1}",
                found=low if low < 0 else high,
            )

    def _take_pages(self, parts: Listed[Part]) -> None:
        """Pages for all tokens to come, or none at all."""
        taken: list[tuple[Sequence, int]] = []
        try:
            for part in parts:
                total = part.sequence.length_tokens + len(part.tokens)
                self._check_length(total)
                while len(part.sequence.pages) * PAGE_TOKENS < total:
                    part.sequence.pages.append(self._pages.take())
                    taken.append((part.sequence, part.sequence.pages[-1]))
        except BaseException:
            for sequence, page in reversed(taken):
                sequence.pages.pop()
                self._pages.release([page])
            raise

    def _run(self, parts: Listed[Part], operations: int) -> int:
        rows = sum(len(part.tokens) for part in parts)
        if not 0 < rows <= len(self._tokens) or not all(part.tokens for part in parts):
            raise UsageError(
                "a step takes at least one token of each part and not more than it has rows for",
                expected=f"1 to {len(self._tokens)} tokens",
                found=rows,
            )
        if len({id(part.sequence) for part in parts}) < len(parts):
            raise UsageError("a step takes the tokens of one sequence in one part")
        for part in parts:
            self._check_vocabulary(part.tokens)
        wanted = sum(WANTED_ROWS[part.wanted](len(part.tokens)) for part in parts)
        if wanted > self.logits_rows:
            raise UsageError(
                "a step gives the logits of fewer tokens than are wanted",
                expected=f"at most {self.logits_rows}",
                found=wanted,
            )
        self._take_pages(parts)
        row = page = chosen = 0
        for index, part in enumerate(parts):
            count, past = len(part.tokens), part.sequence.length_tokens
            pages = part.sequence.pages
            self._tokens[row : row + count] = part.tokens
            self._positions[row : row + count] = range(past, past + count)
            self._segments[index] = (row, count, past, page)
            self._page_list[page : page + len(pages)] = pages
            kept = WANTED_ROWS[part.wanted](count)
            self._chosen[chosen : chosen + kept] = range(row + count - kept, row + count)
            row, page, chosen = row + count, page + len(pages), chosen + kept
        self._program.native.step(
            self._tokens[:row],
            self._positions[:row],
            self._segments[: len(parts)],
            self._page_list[:page],
            self._chosen[:chosen],
            operations,
        )
        for part in parts:
            self._append(part)
        return chosen

    def _append(self, part: Part) -> None:
        """The step is done: the sequence has its tokens, and full pages become known."""
        sequence = part.sequence
        full = sequence.length_tokens // PAGE_TOKENS
        sequence.tokens.extend(part.tokens)
        for index in range(full, sequence.length_tokens // PAGE_TOKENS):
            content = sequence.tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
            self._pages.learn(sequence.pages, index, content)
