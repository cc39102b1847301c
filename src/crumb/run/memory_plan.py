"""What the native engine will hold in memory, planned before anything is allocated.

In: a Plan, the formats of its matrices, EngineSettings. Out: a MemoryPlan: the place of every
buffer, and the bytes of weights, cache, buffers and scratch. The engine allocates exactly this,
so the dry run is the plan itself. Refuses, with DoesNotFit, what the machine cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.errors import CrumbError, DoesNotFit, UsageError
from crumb.formats.catalog import Format
from crumb.kernels.engine import (
    BLOCK_INPUTS,
    CACHE_KINDS,
    PAGE_TOKENS,
    activation_rows,
    activation_stride,
    attention_scratch_floats,
    cache_head_bytes,
    matmul_scratch_bytes,
)
from crumb.machine.memory import available_bytes, resident_bytes
from crumb.machine.processors import processors
from crumb.operations.attention import Attention
from crumb.operations.linear import Linear
from crumb.operations.operation import Operation
from crumb.operations.table import row_of
from crumb.requests.number import as_integer
from crumb.run.buffers import Place, place_buffers
from crumb.run.grouped_rows import grouped_of, integers_of, places_of, rows_of
from crumb.run.page_store import DISK_BYTES
from crumb.run.states import StatePlan, plan_states

MOST = 1 << 24
"""The largest number of tokens or sequences that may be asked for."""


def most_threads() -> int:
    """Threads that may be asked for. Those beyond the processors only wait for each other."""
    return max(64, 4 * processors())


class CacheKind(StrEnum):
    """How keys and values are kept."""

    F16 = "f16"
    INT8 = "int8"
    F32 = "f32"


class ActivationKind(StrEnum):
    """What quantized matrices are multiplied with."""

    INT8 = "int8"
    F32 = "f32"


Kind = TypeVar("Kind", bound=StrEnum)


def chosen_kind(kinds: type[Kind], name: str, where: str) -> Kind:
    """The kind of this name. Raises: UsageError, naming the kinds there are."""
    try:
        return kinds(name)
    except ValueError:
        expected = " or ".join(kinds)
        raise UsageError(
            "no such kind", where=where, expected=expected, found=repr(name)[:80]
        ) from None


class WeightsKind(StrEnum):
    """Where quantized matrices are while they run."""

    MAPPED = "mapped"  # in the file's own pages, shared between processes
    COPIED = "copied"  # in memory of the process, in huge pages where the system gives them


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built."""

    context_tokens: int | None = None  # of each sequence; None: all the model's positions
    sequences: int = 1  # that the cache has room for at once, each of context_tokens
    step_tokens: int = 256  # most tokens of one step: a prompt is read in chunks of these
    logits_rows: int = 16  # most tokens of one step whose logits are wanted
    cache: CacheKind = CacheKind.F16
    activations: ActivationKind = ActivationKind.INT8
    weights: WeightsKind = WeightsKind.MAPPED
    threads: int | None = None  # None: all processors of this process
    cache_dir: Path | None = None  # where pages of the cache outlive the process
    cache_disk_bytes: int = DISK_BYTES  # that all pages there may take
    whole_texts: bool = False  # each comes in one step: no state outlives it

    def __post_init__(self) -> None:
        for name in ("context_tokens", "sequences", "step_tokens", "logits_rows", "threads"):
            value = getattr(self, name)
            if value is None and name in ("context_tokens", "threads"):
                continue
            count = as_integer(value)
            most = most_threads() if name == "threads" else MOST
            if count is None or not 1 <= count <= most:
                raise UsageError(
                    "an engine setting is out of range",
                    where=name,
                    expected=f"a whole number from 1 to {most}",
                    found=repr(value)[:80],
                )
            object.__setattr__(self, name, count)

    def context(self, plan: Plan) -> int:
        """Tokens of a sequence. Raises: UsageError."""
        context = self.context_tokens or plan.max_positions
        if context > plan.max_positions:
            raise UsageError(
                "the model has fewer positions than the context asked for",
                expected=f"at most {plan.max_positions} tokens",
                found=context,
            )
        return context

    @property
    def head_rows(self) -> int:
        """Rows of the last stage's buffers: it runs on chosen tokens alone."""
        return min(self.logits_rows, self.step_tokens)

    def of_plan(self, plan: Plan) -> EngineSettings:
        """The same where a step holds all that an encoder reads of a text. Raises: UsageError."""
        if not plan.inputs:
            return self
        return replace(self, step_tokens=max(self.step_tokens, self.context(plan)))

    def pages(self, plan: Plan) -> int:
        """Pages of the cache, and of the memories of what was read; 0 where nothing attends."""
        if not attends(plan):
            return 0
        return self.sequences * -(-self.context(plan) // PAGE_TOKENS)

    def passing_pages(self, plan: Plan) -> int:
        """Pages of what attention keeps for the time of a step alone."""
        return min(self.pages(plan), -(-self.step_tokens // PAGE_TOKENS) + self.sequences)

    def thread_count(self) -> int:
        return self.threads or processors()


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes of an engine, and the places of its buffers."""

    weights_bytes: int
    cache_bytes: int  # of sequences, what they have read and their states included
    buffer_bytes: int
    scratch_bytes: int
    table_bytes: int  # rotary tables, and the orders of columns
    places: tuple[Mapping[str, Place], ...]  # by stage: buffer name -> place
    gathered: Mapping[tuple[int, int], Place]  # (rows, width) of inputs in another order -> place
    grouped_begin: int  # floats of the arena before what operations have that deal rows out
    grouping_integers: int  # that the largest of these needs
    arena_floats: int
    scratch_row_bytes: int  # of each thread
    states: StatePlan
    process_bytes: int = 0  # interpreter, packages and tokenizer, where they were measured

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.cache_bytes
            + self.buffer_bytes
            + self.scratch_bytes
            + self.table_bytes
            + self.process_bytes
        )


def block_inputs(format: Format, in_features: int) -> int:
    """Inputs whose int8 activations are added up: a group's, at most those of one scale."""
    return min(format.group_width(in_features), BLOCK_INPUTS)


def activation_bytes(columns: int, block: int, rows: int) -> int:
    """Bytes of the int8 activations of one shape: codes, scales and sums."""
    numbers = -(-columns // BLOCK_INPUTS) + -(-columns // block)
    return activation_rows(rows) * activation_stride(columns) + rows * numbers * 4


def cache_page_bytes(operation: Operation, cache: CacheKind) -> int:
    """Bytes of one page of an operation's cache; 0 where it keeps nothing."""
    needs = row_of(operation).needs(operation)
    return needs.cache_heads * cache_head_bytes(needs.head_dim, CACHE_KINDS[cache], needs.value_dim)


def attends(plan: Plan) -> bool:
    """Whether a model looks back at its text, so that what it keeps grows with it."""
    return any(isinstance(each, Attention) for stage in plan.stages for each in stage.operations)


def passes(operation: Operation, plan: Plan) -> bool:
    """Whether an attention sees its own step alone, so that nothing is kept for a sequence."""
    return (
        isinstance(operation, Attention)
        and operation.state is None
        and operation.key not in plan.memory
    )


def cache_bytes(plan: Plan, operations: Iterable[Operation], settings: EngineSettings) -> int:
    """Bytes of the pages of some operations; those that nothing is kept for share theirs."""
    lasting = passing = 0
    for each in operations:
        if passes(each, plan):
            passing = max(passing, cache_page_bytes(each, CacheKind.F32))
        else:
            lasting += cache_page_bytes(each, settings.cache)
    return settings.pages(plan) * lasting + settings.passing_pages(plan) * passing


def place_gathered(
    plan: Plan, orders: Mapping[str, NDArray[np.int32]], settings: EngineSettings, begin: int
) -> tuple[dict[tuple[int, int], Place], int]:
    """Places of inputs that are gathered in the order of a matrix's columns, and where they end.

    A gathered input is read by the very next operations, so that all begin at `begin`.
    """
    places = {}
    for stage in plan.stages:
        rows = settings.head_rows if stage is plan.stages[-1] else settings.step_tokens
        for op in stage.operations:
            if isinstance(op, Linear) and op.weight in orders:
                places[rows, op.in_features] = Place(begin, op.in_features, rows)
    return places, max((place.end for place in places.values()), default=begin)


def plan_memory(
    plan: Plan,
    formats: Mapping[str, Format],
    weights_bytes: int,
    settings: EngineSettings,
    orders: Mapping[str, NDArray[np.int32]] | None = None,
) -> MemoryPlan:
    """The dry run of an engine's allocations.

    `formats`: of the matrices that are quantized. `orders`: of those whose columns stand in another
    order. Raises: UsageError for a plan that the native engine does not run.
    """
    check_memory(plan)
    settings = settings.of_plan(plan)
    places, arena = place_buffers(plan, settings.step_tokens, settings.head_rows)
    gathered, arena = place_gathered(plan, orders or {}, settings, arena)
    operations = [operation for stage in plan.stages for operation in stage.operations]
    grouped, grouped_begin = grouped_of(operations), arena
    for each in grouped:
        places_of_each = places_of(each, settings.step_tokens, grouped_begin).values()
        arena = max(arena, *(place.end for place in places_of_each))
    integers = max((integers_of(each, settings.step_tokens) for each in grouped), default=0)
    shapes = activation_shapes(operations, formats, settings)
    context = settings.context(plan)
    needs = [row_of(operation).needs(operation) for operation in operations]
    row = scratch_row_bytes(plan, max(need.head_dim for need in needs), context)
    states = plan_states(plan, 0 if settings.whole_texts else settings.sequences)
    tables = {(need.table, need.table_width) for need in needs}
    different = {id(order): order.nbytes for order in (orders or {}).values()}
    return MemoryPlan(
        weights_bytes=weights_bytes,
        cache_bytes=cache_bytes(plan, operations, settings) + states.total_bytes,
        buffer_bytes=4 * arena + 4 * integers + sum(activation_bytes(*shape) for shape in shapes),
        scratch_bytes=settings.thread_count() * row,
        table_bytes=sum(4 * context * width for _, width in tables) + sum(different.values()),
        places=places,
        gathered=gathered,
        grouped_begin=grouped_begin,
        grouping_integers=integers,
        arena_floats=arena,
        scratch_row_bytes=row,
        states=states,
    )


def check_memory(plan: Plan) -> None:
    """Raises: UsageError where more than attention reads what is made once for a sequence."""
    often = (each for stage in plan.stages if not stage.once for each in stage.operations)
    others = {
        name
        for each in often
        for name in (each.reads[:1] if isinstance(each, Attention) else each.reads)
    }
    if plan.inputs not in ((), ("source",)) or others & plan.memory:
        raise UsageError(
            "the native engine runs no such encoder",
            where=plan.family,
            expected="one text that is read, and attention alone to what is made of it",
            found=", ".join((*plan.inputs, *sorted(others & plan.memory))),
            do="Evaluate it with --executor array",
        )


def activation_shapes(
    operations: Iterable[Operation], formats: Mapping[str, Format], settings: EngineSettings
) -> set[tuple[int, int, int]]:
    """Columns, inputs that are added up and rows of all int8 activations that a model reads."""
    if settings.activations is ActivationKind.F32:
        return set()
    shapes = set()
    for op in operations:
        read, rows = [], settings.step_tokens
        grouped = row_of(op).needs(op).grouped
        if grouped is not None:
            read, rows = list(grouped.matrices), rows_of(grouped, settings.step_tokens)
        elif isinstance(op, Linear):
            read = [(op.weight, op.in_features)]
        shapes |= {
            (columns, block_inputs(formats[weight], columns), rows)
            for weight, columns in read
            if weight in formats
        }
    return shapes


def scratch_row_bytes(plan: Plan, head_dim: int, context: int) -> int:
    """Scratch of one thread, whole pages; `head_dim` of the widest attention, 0: there is none."""
    columns = max(op.shape[1] for op in plan.tensors() if op.matrix)
    row = matmul_scratch_bytes(columns)
    if head_dim:
        row = max(row, 4 * attention_scratch_floats(context, head_dim))
    return -(-row // 4096) * 4096


FIRST_STEP_BYTES = 1 << 20
"""What the first request touches: code, the stack of the scheduler, its own objects."""

CHOICE_ARRAYS = 6
"""f64 arrays as long as the vocabulary that choosing a token holds at once."""


def process_bytes(
    vocabulary: int, resident_before_bytes: int, read_tokenizer: Callable[[], object]
) -> int:
    """What a process takes beside its engine: measured, as no rule tells it.

    `resident_before_bytes`: of the process before the engine was built.
    """
    begin = resident_bytes()
    tokenizer = None
    with suppress(CrumbError):  # whoever needs the tokenizer is told why it cannot be read
        tokenizer = read_tokenizer()
    growth = max(0, resident_bytes() - begin)
    del tokenizer
    return resident_before_bytes + growth + FIRST_STEP_BYTES + CHOICE_ARRAYS * 8 * vocabulary


def check_fits(memory: MemoryPlan, where: object) -> None:
    """Refuse an engine whose memory the machine does not have. Weights are file pages: they count.

    Raises: DoesNotFit.
    """
    free = available_bytes()
    needed = memory.total_bytes - memory.process_bytes  # the process has its own already
    if needed > free:
        raise DoesNotFit(
            "the model and its cache do not fit the memory",
            where=where,
            expected=f"{needed / 1e9:.2f} GB: {memory.weights_bytes / 1e9:.2f} of weights, "
            f"{memory.cache_bytes / 1e9:.2f} of cache, "
            f"{(needed - memory.weights_bytes - memory.cache_bytes) / 1e9:.2f} of buffers",
            found=f"{free / 1e9:.2f} GB available",
            do="Ask for a shorter --context, --cache int8, or fewer bits",
        )
