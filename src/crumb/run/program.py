"""A Plan handed to the native engine: weights, buffers and operations in order.

In: an opened checkpoint, EngineSettings, a MemoryPlan. Out: a Program: the native engine and views
of the buffers it reads and writes. Quantized matrices are run as they lie in the file's mapping.
Refuses what the checkpoint readers refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Quantized, StoredFloats, StoredPacked
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.dispatch import selected_set, sub_code, zero_code
from crumb.kernels.engine import (
    BLOCK_INPUTS,
    CACHE_KINDS,
    FLOAT_KINDS,
    NativeEngine,
    activation_rows,
    activation_stride,
    table_bytes,
)
from crumb.operations.attention import Attention
from crumb.operations.linear import Linear
from crumb.operations.operation import Operation
from crumb.operations.rope import Rope
from crumb.operations.rotary import rotation_table
from crumb.operations.table import row_of
from crumb.run.buffers import Place
from crumb.run.gates import with_gates
from crumb.run.grouped_rows import places_of, rows_of
from crumb.run.memory_plan import (
    ActivationKind,
    CacheKind,
    EngineSettings,
    MemoryPlan,
    WeightsKind,
    block_inputs,
    cache_page_bytes,
    passes,
    plan_memory,
)
from crumb.run.stored_matrices import (
    formats_of,
    ordered_matrices,
    orders_of,
    runs_packed,
    weights_bytes,
)

Floats = NDArray[np.float32]

NO_BUFFER = -1


Group = tuple[str, int, int | None]
"""The buffer that linear layers read, its int8 activations, and the order they read it in."""


def plan_engine(checkpoint: Checkpoint, settings: EngineSettings) -> MemoryPlan:
    """The memory an engine of this model would take. Raises: UsageError."""
    return plan_memory(
        checkpoint.plan,
        formats_of(checkpoint),
        weights_bytes(checkpoint),
        settings,
        orders_of(checkpoint),
    )


def aligned_bytes(rows: int, row_bytes: int) -> NDArray[np.uint8]:
    """Zeros whose rows begin at multiples of 64; untouched pages cost nothing."""
    raw = np.zeros(rows * row_bytes + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + rows * row_bytes].reshape(rows, row_bytes)


def attentions(plan: Plan) -> Iterator[Attention]:
    """Those of the stages that run again and again."""
    for stage in plan.stages:
        for operation in stage.operations:
            if isinstance(operation, Attention) and not stage.once:
                yield operation


class Program:
    """A native engine and the memory that its plan says; operations are appended in order."""

    def __init__(
        self, checkpoint: Checkpoint, settings: EngineSettings, memory: MemoryPlan
    ) -> None:
        self.plan: Plan = checkpoint.plan
        self.tensors, self.settings, self.memory = checkpoint.tensors, settings, memory
        self.ordered, self.orders = ordered_matrices(self.plan), orders_of(checkpoint)
        self.context = settings.context(self.plan)
        scratch = aligned_bytes(settings.thread_count(), memory.scratch_row_bytes)
        self.native = NativeEngine(selected_set(), settings.thread_count(), scratch)
        self.arena = aligned_bytes(1, 4 * memory.arena_floats)[0].view(np.float32)
        self.copies, self.copied_bytes = np.empty(0, np.uint8), 0
        if settings.weights is WeightsKind.COPIED:  # NumPy asks for huge pages for large blocks
            room = np.empty(memory.weights_bytes + 64 * (len(self.tensors.entries) + 1), np.uint8)
            self.copies = room[-room.ctypes.data % 64 :]
        self.matrices: dict[str, int] = {}
        self.caches: list[NDArray[np.uint8]] = []  # of each attention: (pages, bytes)
        self.memories: dict[str, NDArray[np.uint8]] = {}  # by the buffer of the keys
        self.passing = np.zeros((0, 0), np.uint8)  # pages of attention to a step alone
        states = memory.states
        rows = aligned_bytes(states.places + states.guesses, 4 * states.floats)
        self.states = rows.view(np.float32)  # of all operations that keep one
        self.activations: dict[tuple[int, int, int], int] = {}
        self.dealing = np.zeros(memory.grouping_integers, np.int32)
        self.tables: dict[Rope, Floats] = {}
        self.views: dict[Place, tuple[int, Floats]] = {}
        self.places: Mapping[str, Place] = {}  # of the stage whose operations are appended
        self.grouped: Group | None = None  # what the open group of linear layers reads

    def append(self, index: int, begin: int = 0, end: int | None = None) -> int:
        """Append operations begin .. end - 1 of a stage; how many native ones there are then.

        Raises: CheckpointError.
        """
        self.places, self.grouped = self.memory.places[index], None
        for operation in with_gates(self.plan.stages[index], self.places, begin, end):
            if not isinstance(operation, Linear):
                self.grouped = None
            row_of(operation).native(operation, self)
        return self.native.operation_count()

    def select(self) -> None:
        """Of what flows into the last stage, pass on the rows that a step asks for."""
        before, self.places = self.memory.places[-2:]
        for name in self.plan.stages[-1].inputs:
            if name in before:
                self.add("select", input=self.buffer_at(before[name]), out=self.buffer(name))

    def add(self, kind: str, **arguments: Any) -> None:
        self.native.add(kind, **arguments)

    def turns(self, rope: Rope) -> Floats:
        """Cosines and sines of every position, once for each rope."""
        if rope not in self.tables:
            self.tables[rope] = rotation_table(rope, self.context)
        return self.tables[rope]

    def remember(self, index: int) -> None:
        """Put what a stage makes for attention into pages, behind its operations."""
        stage, self.places = self.plan.stages[index], self.memory.places[index]
        for operation in attentions(self.plan):
            if operation.key in self.plan.memory and operation.key in stage.outputs:
                assert operation.value is not None, "latents are not remembered"
                self.add(
                    "remember",
                    key=self.buffer(operation.key),
                    value=self.buffer(operation.value),
                    heads=operation.key_value_heads,
                    **self.memory_pages(operation),
                )

    def memory_pages(self, operation: Attention) -> Mapping[str, Any]:
        """Pages of what an attention finds made for it."""
        kind = self.settings.cache
        if operation.key not in self.memories:
            row_bytes = cache_page_bytes(operation, kind)
            self.memories[operation.key] = aligned_bytes(self.settings.pages(self.plan), row_bytes)
        return {"pages": self.memories[operation.key], "cache": CACHE_KINDS[kind]}

    def cache(self, operation: Attention) -> Mapping[str, Any]:
        """Pages of an attention: of its own, of what it finds made, or for the time of a step."""
        if operation.key in self.plan.memory:
            return {**self.memory_pages(operation), "memory": True}
        if passes(operation, self.plan):
            return {**self._passing_pages(operation), "memory": False}
        row_bytes = cache_page_bytes(operation, self.settings.cache)
        pages = aligned_bytes(self.settings.pages(self.plan), row_bytes)
        self.caches.append(pages)
        return {"pages": pages, "cache": CACHE_KINDS[self.settings.cache], "memory": False}

    def _passing_pages(self, operation: Attention) -> Mapping[str, Any]:
        """Pages in f32 that all such attentions write over."""
        row_bytes, count = (
            cache_page_bytes(operation, CacheKind.F32),
            self.settings.passing_pages(self.plan),
        )
        if self.passing.shape != (count, row_bytes):
            self.passing = aligned_bytes(count, row_bytes)
        return {"pages": self.passing, "cache": CACHE_KINDS[CacheKind.F32]}

    def state(self, operation: Operation) -> Mapping[str, Any]:
        """Where an operation that keeps a state has it among those of a sequence."""
        slot = getattr(operation, "state", None)
        assert slot is not None, operation
        return {"states": self.states, "begin": self.memory.states.begins[slot]}

    def buffer_at(self, place: Place) -> int:
        if place not in self.views:
            data = self.arena[place.offset : place.end].reshape(place.rows, place.stride)
            self.views[place] = (self.native.add_buffer(data, place.width), data)
        return self.views[place][0]

    def buffer(self, name: str) -> int:
        return self.buffer_at(self.places[name])

    def view(self, name: str) -> Floats:
        """A buffer of the stage whose operations were appended last, (rows, width)."""
        self.buffer(name)
        place = self.places[name]
        return self.views[place][1][:, : place.width]

    def vector(self, name: str | None) -> Floats | None:
        return None if name is None else self.tensors.read_float(name)

    def matrix(self, name: str, at_once: bool = True) -> int:
        if name not in self.matrices:
            entry = self.tensors.entry(name)
            if isinstance(entry, StoredArray):
                self.matrices[name] = self.add_plain(name, entry.map(at_once))
            elif isinstance(entry, StoredFloats):
                self.matrices[name] = self.add_plain(name, entry.read())
            elif runs_packed(name, entry, self.ordered):
                self.matrices[name] = self.add_packed(self.placed(entry, at_once))
            else:
                self.matrices[name] = self.add_plain(name, self.tensors.read_float(name))
        return self.matrices[name]

    def add_packed(self, tensor: PackedTensor) -> int:
        format = tensor.format
        index = self.native.add_tiles(
            tensor.tiles,
            tensor.out_features,
            tensor.in_features,
            format.group_width(tensor.in_features),
            format.bits,
            zero_code(format),
            sub_code(format),
            table_bytes(format.row),
        )
        if tensor.columns is not None:
            tiles = tensor.columns.tiles.view(np.uint8)
            self.native.add_columns(index, tensor.columns.places, tiles)
        return index

    def placed(self, entry: Quantized, at_once: bool) -> PackedTensor:
        """A matrix where it is to run from: the file's mapping, or the next place of one block."""
        if not isinstance(entry, StoredPacked):
            return entry.read()
        if self.settings.weights is WeightsKind.MAPPED:
            return entry.map(at_once)
        begin, size = self.copied_bytes, entry.size_bytes
        self.copied_bytes += -(-size // 64) * 64
        return entry.read_into(self.copies[begin : begin + size])

    def add_plain(self, name: str, array: NDArray[Any]) -> int:
        if array.dtype.name not in FLOAT_KINDS:
            array = self.tensors.read_float(name)
        raw = array.view(np.uint8).reshape(array.shape[0], -1)
        return self.native.add_floats(raw, array.shape[1], FLOAT_KINDS[array.dtype.name])

    def quantized_input(self, weight: str, in_features: int, rows: int) -> int:
        """Index of the int8 activations that a matrix reads, NO_BUFFER where it reads f32."""
        exact, entry = self.settings.activations is ActivationKind.F32, self.tensors.entry(weight)
        if (
            exact
            or not isinstance(entry, Quantized)
            or not runs_packed(weight, entry, self.ordered)
        ):
            return NO_BUFFER
        shape = (in_features, block_inputs(entry.format, in_features), rows)
        if shape not in self.activations:
            scales, sums = (-(-shape[0] // inputs) for inputs in (BLOCK_INPUTS, shape[1]))
            self.activations[shape] = self.native.add_activations(
                aligned_bytes(activation_rows(rows), activation_stride(shape[0])).view(np.int8),
                np.zeros((rows, scales), np.float32),
                np.zeros((rows, sums), np.int32),
                *shape[:2],
            )
        return self.activations[shape]

    def grouping(self, operation: Operation) -> Mapping[str, Any]:
        """Buffers, activations and integers of an operation that deals rows out."""
        needs, step_tokens = row_of(operation).needs(operation).grouped, self.settings.step_tokens
        assert needs is not None, operation
        rows = rows_of(needs, step_tokens)
        read = {self.quantized_input(*matrix, rows) for matrix in needs.matrices}
        places = places_of(needs, step_tokens, self.memory.grouped_begin)
        return {
            "activations": sorted(read - {NO_BUFFER}),
            "groups": self.dealing,
            **{name: self.buffer_at(place) for name, place in places.items()},
        }

    def linear(self, op: Linear) -> None:
        matrix = self.matrix(op.weight)
        activations = self.quantized_input(op.weight, op.in_features, self.settings.step_tokens)
        order = self.orders.get(op.weight)
        group = (op.input, activations, None if order is None else id(order))
        source = self.buffer(op.input)
        if order is not None:
            rows = self.places[op.input].rows
            gathered = self.buffer_at(self.memory.gathered[rows, op.in_features])
            if self.grouped != group:
                self.native.add("gather", input=source, out=gathered, order=order)
            source = gathered
        if activations != NO_BUFFER and self.grouped != group:
            self.native.add("quantize", input=source, activations=activations)
        self.native.add(
            "linear",
            input=source,
            activations=activations,
            out=self.buffer(op.output),
            matrix=matrix,
            bias=self.vector(op.bias),
            joined=self.grouped == group,
        )
        self.grouped = group
