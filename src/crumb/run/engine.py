"""The native engine: many sequences, each with its pages, stepped together.

In: an opened checkpoint and EngineSettings, then tokens of sequences. Out: logits of the rows that
are asked for, or the features before the head. One thread owns an engine: `run.scheduler` gives
one to many. The same tokens give the same bits whatever else is in the step or in the cache.
Refuses sequences longer than the context and tokens outside the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import ContextExceeded, UsageError
from crumb.kernels.engine import PAGE_TOKENS
from crumb.operations.linear import Linear
from crumb.run.cache_dir import open_store
from crumb.run.memories import Memories, SourceMemory, pages_of
from crumb.run.memory_plan import EngineSettings, MemoryPlan, check_fits
from crumb.run.page_store import PageStore, StoredPages, next_key
from crumb.run.pages import PagePool
from crumb.run.program import Program, plan_engine
from crumb.run.states import Run, SequenceState, States

Floats = NDArray[np.float32]

STORED_AT_END = 16
"""Pages that are copied for the disk when a sequence ends: those that found no place before."""


NativePart = tuple[Sequence[int], int, list[int], int]
"""Tokens, how many came before them, pages of all, rows that leave the step."""


class Rows(IntEnum):
    """How many of a part's last rows leave the step, at most."""

    NONE = 0
    LAST = 1
    ALL = 1 << 31


@dataclass(eq=False, slots=True)
class EngineSequence:
    """One sequence: its tokens so far and the pages that hold their keys and values."""

    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # of its beginning, found in pages of earlier sequences
    page_keys: list[bytes] = field(default_factory=list)  # of its first pages, as a store has them
    memory: SourceMemory | None = None  # of what it reads before it writes
    state: SequenceState | None = None  # of what recurrences keep

    @property
    def length_tokens(self) -> int:
        return len(self.tokens)

    @property
    def awaits_source(self) -> bool:
        """Whether its source is to be read before it takes tokens."""
        return self.memory is not None and not self.memory.is_filled


class StepPart(NamedTuple):
    """The next tokens of one sequence."""

    sequence: EngineSequence
    tokens: Sequence[int]
    rows: int = Rows.LAST  # that leave the step, of its last; Rows has the usual ones
    guessed: int = 0  # of the last tokens, that `cut` may take back


class Engine:
    """A model's native executor and its cache."""

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings | None = None) -> None:
        self.plan = checkpoint.plan
        self.settings = (settings or EngineSettings()).of_plan(self.plan)
        self.context_tokens = self.settings.context(self.plan)
        memory = plan_engine(checkpoint, self.settings)
        check_fits(memory, checkpoint.path)
        program = self._program = Program(checkpoint, self.settings, memory)
        self.memories = Memories(program) if self.plan.inputs else None
        last = len(self.plan.stages) - 1
        for index, stage in enumerate(self.plan.stages[:-1]):
            if not stage.once:
                program.append(index)
        program.select()
        operations = self.plan.stages[last].operations
        head = max(k for k, each in enumerate(operations) if isinstance(each, Linear))
        self._operations_to_features = program.append(last, 0, head)
        self._operations = program.append(last, head)
        self._logits = program.view(operations[-1].writes[0])  # (logits_rows, vocabulary)
        self._features = program.view(operations[head].reads[0])  # (logits_rows, hidden)
        self.logits_rows = len(self._logits)
        self._pages = PagePool(self.settings.pages(self.plan))
        states = program.memory.states
        multiple = PAGE_TOKENS if self._pages.count else 1
        self.states = States(states, program.states, multiple) if states.floats else None
        self.store = open_store(checkpoint, self.settings, program.caches)

    @property
    def memory(self) -> MemoryPlan:
        return self._program.memory

    def begin(
        self, tokens: Sequence[int], reuse: bool = True, source: Sequence[int] = ()
    ) -> EngineSequence:
        """A sequence for this prompt; what of its beginning lies in the cache is taken from there.

        Its `cached_tokens` first tokens need not be stepped. `source`: what a model with an encoder
        reads, without which its caches mean nothing. Raises: UsageError, DoesNotFit.
        """
        self.check_prompt(tokens)
        self.check_source(source)
        if self.memories is not None:
            return EngineSequence(memory=self.memories.begin(source))
        pages = self._pages.match(tokens) if reuse else []
        cached, state = len(pages) * PAGE_TOKENS, None
        if self.states is not None:
            most = cached if self._pages.count else None
            state, cached = self.states.begin(tokens if reuse else (), most)
            self._pages.release(pages[self.pages_of(cached) :])
            del pages[self.pages_of(cached) :]
        return EngineSequence(list(tokens[:cached]), pages, cached, state=state)

    def cut(self, sequence: EngineSequence, count: int) -> None:
        """Take a sequence's last tokens back, which this step added. Its pages stay its own.

        Raises: UsageError for tokens that a state has taken in, unless they were guesses.
        """
        if self.states is not None and sequence.state is not None:
            self.states.cut(sequence.state, count)
        if count:
            del sequence.tokens[-count:]
            whole = sequence.length_tokens // PAGE_TOKENS
            self._pages.forget(sequence.pages[whole:])
            del sequence.page_keys[whole:]

    def stored_pages(self, tokens: Sequence[int]) -> StoredPages | None:
        """Pages of a prompt's beginning that lie on disk alone; from any thread."""
        if self.store is None:
            return None
        return self.store.read(tokens, self._pages.count_known(tokens))

    def restore(self, sequence: EngineSequence, tokens: Sequence[int], pages: StoredPages) -> None:
        """Put pages from disk behind those that a sequence began with, instead of stepping."""
        begin = len(sequence.pages)
        if begin < pages.first:
            return  # what came before them has left the cache since
        for index in range(begin, pages.first + len(pages.pages)):
            page, content = self._pages.take(), pages.pages[index - pages.first]
            sequence.pages.append(page)
            place = 0
            for cache in self._program.caches:
                width = cache.shape[1]
                cache[page] = content[place : place + width]
                place += width
            own = tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
            sequence.tokens += own
            self._pages.learn(sequence.pages, index, own)
        sequence.cached_tokens = sequence.length_tokens

    def _store(self, store: PageStore, sequence: EngineSequence, most: int) -> None:
        """Have a sequence's next full pages written, those that are not on disk, up to so many."""
        tokens, keys = sequence.tokens, sequence.page_keys
        for index in range(len(keys), len(tokens) // PAGE_TOKENS):
            own = tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
            key = next_key(keys[-1] if keys else store.root, own)
            if not store.holds(key):
                if not most or not store.write(key, own, partial(self._copied, sequence, index)):
                    return
                most -= 1
            keys.append(key)

    def _copied(self, sequence: EngineSequence, index: int) -> NDArray[np.uint8]:
        """The bytes of one of a sequence's pages."""
        page = sequence.pages[index]
        return np.concatenate([cache[page] for cache in self._program.caches])

    def end(self, sequence: EngineSequence) -> None:
        """Let a sequence's pages go; what they hold may serve later prompts."""
        if self.store is not None:
            self._store(self.store, sequence, STORED_AT_END)
        self._pages.release(sequence.pages)
        if self.memories is not None and sequence.memory is not None:
            self.memories.end(sequence.memory)
            sequence.memory = None
        if self.states is not None and sequence.state is not None:
            self.states.end(sequence.state, sequence.tokens)
            sequence.state = None
        sequence.pages, sequence.tokens, sequence.page_keys = [], [], []

    def check_prompt(self, tokens: Sequence[int]) -> None:
        """Raises: UsageError for tokens that no sequence can begin with."""
        self._check_length(len(tokens))
        self._check_vocabulary(tokens)

    def check_source(self, source: Sequence[int]) -> None:
        """Raises: UsageError for what this model does not read before it writes."""
        if self.memories is not None:
            self.memories.check(source)
            self._check_vocabulary(source)
        elif source:
            raise UsageError("this model reads no text but the prompt", where=self.plan.family)

    def encode(self, sequences: Sequence[EngineSequence]) -> None:
        """Read the sources of sequences that were not read yet; a step does it where nobody has."""
        if self.memories is not None:
            self.memories.fill([each.memory for each in sequences if each.memory is not None])

    def has_room_for(self, source: Sequence[int]) -> bool:
        """Whether a sequence's state finds room, and its source."""
        if self.states is not None and not self.states.available:
            return False
        return self.memories is None or pages_of(source) <= self.memories.pool.available

    def pages_of(self, tokens: int) -> int:
        """Pages of the cache that so many tokens of one sequence take."""
        return -(-tokens // PAGE_TOKENS) if self._pages.count else 0

    @property
    def most_guessed(self) -> int:
        """Guessed tokens that a step may hold, of all sequences."""
        return self.logits_rows if self.states is None else self.states.free_guesses

    @property
    def free_pages(self) -> int:
        """Pages of the cache that no sequence holds."""
        return self._pages.available

    @property
    def cache_use(self) -> float:
        """Share of the pages and of the states' places that sequences hold, 0 to 1."""
        states = 0.0 if self.states is None else self.states.use
        if not self._pages.count:
            return states
        return max(states, 1.0 - self._pages.available / self._pages.count)

    def check_pages(self, count: int) -> None:
        """Raises: DoesNotFit where so many more pages cannot be had."""
        self._pages.check_available(count)

    def run(self, parts: Sequence[StepPart]) -> Floats:
        """Run the tokens of all parts together; gives a view of the logits of the rows asked for.

        Shapes: -> (rows, vocabulary), valid until the next step.
        Raises: UsageError, DoesNotFit when the cache is full; then nothing has changed.
        """
        return self._logits[: self._run(parts, self._operations)]

    def run_to_features(self, parts: Sequence[StepPart]) -> Floats:
        """As run, but what the last linear layer would read: (rows, hidden)."""
        return self.features(self._run(parts, self._operations_to_features))

    def features(self, rows: int) -> Floats:
        """What the last linear layer read in the last step: (rows, hidden), until the next."""
        return self._features[:rows]

    def time_operations(self, timed: bool) -> None:
        """Measure the seconds of each kind of operation from now on, or stop."""
        self._program.native.set_timed(timed)

    def operation_seconds(self) -> dict[str, float]:
        """Seconds by kind of operation while they were timed."""
        return dict(self._program.native.seconds())

    def _check_length(self, length: int) -> None:
        if length > self.context_tokens:
            raise ContextExceeded(
                "the text is longer than the context",
                expected=f"at most {self.context_tokens} tokens",
                found=length,
            )

    def _check_vocabulary(self, tokens: Sequence[int]) -> None:
        if not tokens:
            return
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.plan.vocabulary:
            raise UsageError(
                "a token is not in the model's vocabulary",
                expected=f"0 to {self.plan.vocabulary - 1}",
                found=low if low < 0 else high,
            )

    def _run(self, parts: Sequence[StepPart], operations: int) -> int:
        """Step all parts, or change nothing; how many rows leave the step."""
        steps: dict[EngineSequence, NativePart] = {}
        rows = rows_out = lacking = 0
        has_empty = False
        for sequence, tokens, most, _ in parts:
            count, past, pages = len(tokens), len(sequence.tokens), sequence.pages
            self._check_vocabulary(tokens)
            self._check_length(past + count)
            out = min(count, most)
            steps[sequence] = tokens, past, pages, out
            rows, rows_out, has_empty = rows + count, rows_out + out, has_empty or count == 0
            lacking += max(self.pages_of(past + count) - len(pages), 0)
        if not 0 < rows <= self.settings.step_tokens or has_empty:
            raise UsageError(
                "a step takes at least one token of each part and not more than it has rows for",
                expected=f"1 to {self.settings.step_tokens} tokens",
                found=rows,
            )
        if len(steps) < len(parts):
            raise UsageError("a step takes the tokens of one sequence in one part")
        if rows_out > self.logits_rows:
            raise UsageError(
                "a step gives the logits of fewer tokens than are asked for",
                expected=f"at most {self.logits_rows}",
                found=rows_out,
            )
        if lacking:
            self._pages.check_available(lacking)
            for tokens, past, pages, _ in steps.values():
                while len(pages) < self.pages_of(past + len(tokens)):
                    pages.append(self._pages.take())
        runs = self._runs(parts)
        try:
            self._step(steps, operations, runs)
        except Exception:
            self._drop(steps)
            raise
        for sequence, (tokens, past, pages, _) in steps.items():
            sequence.tokens += tokens
            if self.states is not None and sequence.state is not None:
                self.states.stepped(sequence.state, sequence.tokens)
            if self.memories is not None or not self._pages.count:
                continue  # pages of the same tokens differ by what was read before
            for index in range(past // PAGE_TOKENS, (past + len(tokens)) // PAGE_TOKENS):
                content = sequence.tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
                self._pages.learn(pages, index, content)
            if self.store is not None:
                self._store(self.store, sequence, len(tokens) // PAGE_TOKENS + 1)
        return rows_out

    def _runs(self, parts: Sequence[StepPart]) -> list[list[Run]]:
        """How the states of all parts go through the step. Raises: UsageError."""
        if self.states is None:
            return []
        runs = []
        for sequence, tokens, rows, guessed in parts:
            if sequence.state is None:
                raise UsageError("a sequence of another engine, or one that has ended")
            past, ends = sequence.length_tokens, rows > 0 and not guessed
            runs.append(self.states.runs(sequence.state, past, len(tokens), guessed, ends))
        return runs

    def _drop(self, sequences: Iterable[EngineSequence]) -> None:
        """What a step that failed held beside the states."""
        for each in sequences:
            if self.states is not None and each.state is not None:
                self.states.drop(each.state)

    def _step(
        self, steps: Mapping[EngineSequence, NativePart], operations: int, runs: list[list[Run]]
    ) -> None:
        if self.memories is None:
            self._program.native.step(list(steps.values()), operations, states=runs)
            return
        memories = [each.memory for each in steps if each.memory is not None]
        if len(memories) < len(steps):
            raise UsageError("a sequence of another engine, or one that has ended")
        self.memories.fill(memories)
        remembered = [each.part for each in memories]
        self._program.native.step(list(steps.values()), operations, 1, remembered)
