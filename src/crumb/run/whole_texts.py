"""Whole texts through some operations of a stage, on native engines side by side.

In: a checkpoint; batches of texts with the buffers that flow into the operations. Out: the buffers
behind them, such as the input of a linear layer; f32 throughout. Nothing else is held in between:
matrices are taken from the checkpoint's tensors as they are when their operation runs.
Refuses what the engine refuses. Its oracle is run_span of run/array_executor.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan, Stage
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.kernels.engine import PAGE_TOKENS
from crumb.operations.table import row_of
from crumb.run.buffers import Place
from crumb.run.lanes import Lanes
from crumb.run.memory_plan import (
    ActivationKind,
    CacheKind,
    EngineSettings,
    MemoryPlan,
    cache_bytes,
    plan_memory,
)
from crumb.run.program import Floats, Program, aligned_bytes
from crumb.run.states import NOWHERE

BATCH_TOKENS = 2048
"""Tokens that run through a stage together."""


@dataclass
class Batch:
    """Some texts on their way through a model."""

    tokens: NDArray[np.int64]  # (texts, length)
    buffers: dict[str, Floats] = field(default_factory=dict)  # as engines hold them, padded
    read: Batch | None = None  # what an encoder makes of each text's source

    def features(self, name: str, width: int) -> Floats:
        """A buffer of so many features, (texts * length, width), a view."""
        return self.buffers[name][: self.tokens.size, :width]


@dataclass(frozen=True)
class WholeTexts:
    """How a model runs batches of texts."""

    checkpoint: Checkpoint
    settings: EngineSettings
    memory: MemoryPlan

    def put(self, batch: Batch, name: str, features: Floats) -> None:
        """What flows into a stage. Shapes: (texts, length, features)."""
        place = Place(0, features.shape[-1], self.settings.step_tokens)
        batch.buffers[name] = _rows(place)
        batch.features(name, place.width)[:] = features.reshape(-1, place.width)

    def get(self, index: int, batch: Batch, name: str) -> Floats:
        """A buffer of a stage, a view. Shapes: -> (texts, length, features)."""
        width = self.memory.places[index][name].width
        return batch.features(name, width).reshape(*batch.tokens.shape, width)

    def run(self, index: int, begin: int, end: int, batches: Sequence[Batch]) -> None:
        """Run operations begin .. end - 1 of a stage on every batch.

        A batch then has the buffers that are still needed; arrays that it had may be written over.
        Raises: CheckpointError.
        """
        plan, stage = self.checkpoint.plan, self.checkpoint.plan.stages[index]
        operations, live = stage.operations[begin:end], stage.live_after(end - 1)
        read = {name for each in operations for name in each.reads}
        makers = (
            []
            if stage.once
            else [
                place
                for place, each in enumerate(plan.stages)
                if plan.memory & read & {*each.outputs}
            ]
        )
        written = {name for each in operations for name in each.writes} & live
        if not operations:
            return

        def make(threads: int) -> Program:
            program = Program(self.checkpoint, replace(self.settings, threads=threads), self.memory)
            for maker in makers:
                program.remember(maker)
            if makers:
                program.native.begin_section()
            program.append(index, begin, end)
            return program

        def one(program: Program, batch: Batch) -> None:
            buffers = batch.buffers
            arrays = {program.places[name]: buffers[name] for name in read & buffers.keys()}
            for name in written:  # in the array of what was read from its place, and is let go
                place = program.places[name]
                buffers[name] = arrays.setdefault(place, _rows(place))
            for place, array in arrays.items():
                program.native.move_buffer(program.buffer_at(place), array)
            if makers:
                self._step_with_memory(program, batch, makers)
            else:
                keeps = any(row_of(each).needs(each).state_floats for each in operations)
                states = [[(batch.tokens.shape[1], NOWHERE, NOWHERE)]] if keeps else []
                program.native.step(
                    _parts(batch.tokens),
                    program.native.operation_count(),
                    states=states * len(batch.tokens),
                )
            for name in buffers.keys() - live:
                del buffers[name]

        lane = lane_bytes(self.checkpoint.plan, index, self.settings, self.memory)
        Lanes(make, lane, len(batches)).map(one, batches)

    def _step_with_memory(self, program: Program, batch: Batch, makers: Sequence[int]) -> None:
        """Fill the memory of each text from what was made of its source, then run the texts."""
        assert batch.read is not None, "a memory is made of what is read"
        stages, places = self.checkpoint.plan.stages, self.memory.places
        for maker in makers:
            for name in stages[maker].outputs:
                place, made = places[maker][name], batch.read.buffers[name]
                program.native.move_buffer(program.buffer_at(place), made)
        sources = _parts(batch.read.tokens)
        memories = [(len(tokens), pages) for tokens, _, pages, _ in sources]
        remembered = program.native.section_end(0)
        program.native.step(sources, remembered, 0, memories)
        last = program.native.operation_count()
        program.native.step(_parts(batch.tokens), last, 1, memories)


def cut_batches(tokens: NDArray[np.int64]) -> list[Batch]:
    """Texts, (count, length), some at a time."""
    together = texts_together(tokens.shape[1])
    return [Batch(tokens[begin : begin + together]) for begin in range(0, len(tokens), together)]


def texts_together(length: int) -> int:
    """Texts of a batch."""
    return max(1, BATCH_TOKENS // length)


def cut_pairs(sources: NDArray[np.int64], texts: NDArray[np.int64]) -> list[Batch]:
    """Texts and what is read before each, (count, length) both, some at a time."""
    together = texts_together(max(sources.shape[1], texts.shape[1]))
    slices = [slice(begin, begin + together) for begin in range(0, len(texts), together)]
    return [Batch(texts[each], read=Batch(sources[each])) for each in slices]


def of_stage(stage: Stage, batches: Sequence[Batch]) -> list[Batch]:
    """The batches that run through a stage: those that are read, or the texts."""
    if not stage.once:
        return list(batches)
    return [each.read for each in batches if each.read is not None]


def behind_stage(
    plan: Plan, index: int, batches: Sequence[Batch], ran: Sequence[Batch]
) -> list[Batch]:
    """The batches with what ran through a stage, without what no later stage reads."""
    if not plan.inputs:
        return list(ran)
    read = {name for stage in plan.stages[index + 1 :] for name in stage.inputs}
    for each in ran:
        each.buffers = {name: array for name, array in each.buffers.items() if name in read}
    if not plan.stages[index].once:
        return list(ran)
    return [replace(each, read=own) for each, own in zip(batches, ran, strict=True)]


def plan_texts(checkpoint: Checkpoint, batches: Sequence[Batch]) -> WholeTexts:
    """For these batches. Raises: UsageError."""
    every = [*batches, *(each.read for each in batches if each.read is not None)]
    length = max(each.tokens.shape[1] for each in every)
    settings, memory = plan_batch(checkpoint.plan, max(map(_texts, every)), length)
    return WholeTexts(checkpoint, settings, memory)


def _texts(batch: Batch) -> int:
    return len(batch.tokens)


def plan_batch(plan: Plan, texts: int, length: int) -> tuple[EngineSettings, MemoryPlan]:
    """Engines that run so many texts of a length together. Raises: UsageError."""
    settings = EngineSettings(
        context_tokens=length,
        sequences=texts,
        step_tokens=texts * length,
        logits_rows=texts * length,
        cache=CacheKind.F32,
        activations=ActivationKind.F32,
        whole_texts=True,
    )
    return settings, plan_memory(plan, {}, 0, settings)


def lane_bytes(plan: Plan, index: int, settings: EngineSettings, memory: MemoryPlan) -> int:
    """Memory of one more batch at work in a stage, what flows apart."""
    operations = plan.stages[index].operations
    cache = cache_bytes(plan, operations, settings)
    buffers = 4 * max((place.end for place in memory.places[index].values()), default=0)
    return memory.scratch_row_bytes + cache + buffers


def _rows(place: Place) -> Floats:
    return aligned_bytes(place.rows, 4 * place.stride).view(np.float32)


def _parts(tokens: NDArray[np.int64]) -> list[tuple[list[int], int, list[int], int]]:
    """Whole texts as a step of the native engine takes them."""
    pages = -(-tokens.shape[1] // PAGE_TOKENS)
    return [
        (text, 0, list(range(index * pages, (index + 1) * pages)), 0)
        for index, text in enumerate(tokens.tolist())
    ]
