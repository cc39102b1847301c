"""What the sequences of an engine have read before they write: filled once, read at every step.

In: a Program whose first section makes keys and values of a source. Out: pages of memory, which a
sequence holds from its begin to its end; a step fills those of several sequences together.
Refuses sources that are empty or longer than the model takes, and a memory that is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from crumb.errors import ContextExceeded, UsageError
from crumb.kernels.engine import PAGE_TOKENS
from crumb.run.memory_plan import EngineSettings
from crumb.run.pages import PagePool
from crumb.run.program import Program

AT_MOST = "Shorten it; a larger n_positions in config.json lets a T5 read on"
"""Its positions are distances, and far ones count alike: no text is too long for its code."""


@dataclass(eq=False, slots=True)
class SourceMemory:
    """What one sequence reads, and where it lies once it is read."""

    source: Sequence[int]  # tokens
    pages: list[int] = field(default_factory=list)
    is_filled: bool = False

    @property
    def part(self) -> tuple[int, list[int]]:
        """As a step of the native engine takes it."""
        return len(self.source), self.pages


class Memories:
    """Those of one engine."""

    def __init__(self, program: Program) -> None:
        """Appends the stages that run once, as a section of their own."""
        for index, stage in enumerate(program.plan.stages):
            if stage.once:
                program.append(index)
                program.remember(index)
        self._program, self._operations = program, program.native.operation_count()
        program.native.begin_section()
        self._settings: EngineSettings = program.settings
        self._most_tokens = program.context
        self._is_narrowed = program.context < program.plan.max_positions
        self._step_pages = self._settings.passing_pages(program.plan)
        self.pool = PagePool(self._settings.pages(program.plan))

    def check(self, source: Sequence[int]) -> None:
        """Raises: UsageError, ContextExceeded."""
        if not source:
            raise UsageError("there is no text to read", do="Give at least one token")
        if len(source) > self._most_tokens:
            raise ContextExceeded(
                "the text to read is longer than the model takes",
                expected=f"at most {self._most_tokens} tokens",
                found=len(source),
                do="Shorten it, or give a larger context" if self._is_narrowed else AT_MOST,
            )

    def begin(self, source: Sequence[int]) -> SourceMemory:
        """Room for a source. Raises: UsageError, DoesNotFit."""
        self.check(source)
        count = pages_of(source)
        self.pool.check_available(count)
        return SourceMemory(tuple(source), [self.pool.take() for _ in range(count)])

    def end(self, memory: SourceMemory) -> None:
        self.pool.release(memory.pages)
        memory.pages, memory.is_filled = [], False

    def fill(self, memories: Sequence[SourceMemory]) -> None:
        """Read the sources that are not read yet, those of like length together."""
        empty = sorted((each for each in memories if not each.is_filled), key=_length)
        for together in self._steps(empty):
            parts, first = [], 0
            for each in together:
                last = first + pages_of(each.source)
                parts.append((each.source, 0, list(range(first, last)), 0))
                first = last
            remembered = [each.part for each in together]
            self._program.native.step(parts, self._operations, 0, remembered)
            for each in together:
                each.is_filled = True

    def _steps(self, memories: Sequence[SourceMemory]) -> Iterator[list[SourceMemory]]:
        """As many sources at a time as a step has rows and pages for."""
        together, rows, pages = list[SourceMemory](), 0, 0
        for each in memories:
            rows, pages = rows + len(each.source), pages + pages_of(each.source)
            if together and (rows > self._settings.step_tokens or pages > self._step_pages):
                yield together
                together, rows, pages = [], len(each.source), pages_of(each.source)
            together.append(each)
        if together:
            yield together


def pages_of(source: Sequence[int]) -> int:
    """Pages that a source takes."""
    return -(-len(source) // PAGE_TOKENS)


def _length(memory: SourceMemory) -> int:
    return len(memory.source)
