"""Checks that every kind of operation passes: gradients against differences, both executors.

In: an operation and the shapes of its arrays. Out: an assertion. `difference` moves every number
that the operation reads by a small step in f64 along a random direction and compares the change of
a random projection of its outputs; `native_output` runs it alone in the native engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb._native import (
    NativeEngine,
    attention_scratch_floats,
    cache_head_bytes,
    grouped_rows,
    grouping_integers,
    matmul_scratch_bytes,
)
from crumb.kernels.dispatch import supported_sets
from crumb.operations.operation import Context, Operation
from crumb.operations.rotary import rotation_table
from crumb.operations.table import output_widths, row_of

Array = NDArray[Any]

PAGES, PLACES = 20, 3

STEP = 1e-4
"""Of central differences in f64: their error is of the order STEP squared."""


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def check_gradient(
    operation: Operation, reads: tuple[Array, ...], weights: dict[str, Array], places: int = 0
) -> None:
    """Directional derivatives of every float array read, and of every weight.

    `places`: how many of the last arrays are positions or tokens, which have no gradient.
    """
    row = row_of(operation)
    outputs = row.reference(operation, reads, Context(weights))
    toward = tuple(drawn(*output.shape, seed=9) for output in outputs)
    context = Context(weights, trained=tuple(weights))
    inputs, trained = row.gradient(operation, reads, toward, context)

    def moved(reads: tuple[Array, ...], weights: dict[str, Array]) -> float:
        results = row.reference(operation, reads, Context(weights))
        return sum(float((a * b).sum()) for a, b in zip(results, toward, strict=True))

    def compare(gradient: Array | None, along: Array, plus: float, minus: float) -> None:
        assert gradient is not None
        slope = (plus - minus) / (2 * STEP)
        size = float(np.abs(gradient * along).sum()) + 1.0
        assert abs(float((gradient * along).sum()) - slope) < 2e-5 * size

    for index in range(len(reads) - places):
        along = drawn(*reads[index].shape, seed=5 + index)
        ways = []
        for sign in (1, -1):
            changed = list(reads)
            changed[index] = reads[index] + sign * STEP * along
            ways.append(moved(tuple(changed), weights))
        compare(inputs[index], along, *ways)
    assert all(gradient is None for gradient in inputs[len(reads) - places :])
    for name, array in weights.items():
        along = drawn(*array.shape, seed=7)
        ways = [moved(reads, weights | {name: array + sign * STEP * along}) for sign in (1, -1)]
        compare(trained[name], along, *ways)


class Alone:
    """The native engine under construction for one operation."""

    def __init__(
        self,
        operation: Operation,
        reads: tuple[Array, ...],
        weights: dict[str, Array],
        isa: str,
        cuts: tuple[int, ...] = (),
    ) -> None:
        """`cuts`: rows at which a state goes out and comes in again."""
        self.weights = {name: array.astype(np.float32) for name, array in weights.items()}
        self.rows = reads[0].shape[1]
        size = max(matmul_scratch_bytes(256), 4 * attention_scratch_floats(16 * PAGES, 64))
        raw = np.zeros(2 * size + 128, np.uint8)
        begin = -raw.ctypes.data % 64
        size = -(-size // 64) * 64
        self.engine = NativeEngine(isa, 1, raw[begin : begin + size].reshape(1, size))
        self.arrays: dict[str, Array] = {}
        self.places: dict[str, int] = {}
        widths = {
            name: x.shape[-1] for name, x in zip(operation.reads, reads, strict=True) if x.ndim == 3
        }
        for name, width in (widths | output_widths(operation, widths)).items():
            self._buffer(name, width)
        for name, x in zip(operation.reads, reads, strict=True):
            if x.ndim == 3:
                self.arrays[name][:, : x.shape[-1]] = x[0]
        self.states: Array | None = None
        self.operation, self.matrices = operation, dict[str, int]()
        words = self.engine.add_floats(np.zeros((4, 64), np.uint8), 16, 0)
        scrap = self._buffer("scrap", 16)
        row_of(operation).native(operation, self)
        self.engine.add("embed", of_positions=False, out=scrap, matrix=words, first_row=0)
        pages = list(range(-(-self.rows // 16)))
        states = [] if self.states is None else [_runs(self.rows, cuts)]
        self.engine.step([([0] * self.rows, 0, pages, 0)], 1, states=states)

    def _buffer(self, name: str, width: int, rows: int | None = None) -> int:
        if name not in self.places:
            shape = (rows or self.rows, -(-width // 16) * 16)
            self.arrays[name] = np.zeros(shape, np.float32)
            self.places[name] = self.engine.add_buffer(self.arrays[name], width)
        return self.places[name]

    def add(self, kind: str, **arguments: Any) -> None:
        self.engine.add(kind, **arguments)

    def buffer(self, name: str) -> int:
        return self.places[name]

    def vector(self, name: str | None) -> Array | None:
        return None if name is None else self.weights[name]

    def matrix(self, name: str, at_once: bool = True) -> int:
        del at_once  # nothing is mapped here
        if name not in self.matrices:
            array = self.weights[name]
            raw = array.view(np.uint8).reshape(array.shape[0], -1)
            self.matrices[name] = self.engine.add_floats(raw, array.shape[1], 0)
        return self.matrices[name]

    def grouping(self, operation: Operation) -> dict[str, Any]:
        needs = row_of(operation).needs(operation).grouped
        assert needs is not None
        pairs = self.rows * needs.used
        rows = grouped_rows(pairs, needs.groups)
        return {
            "activations": [],
            "groups": np.zeros(grouping_integers(pairs, needs.groups), np.int32),
            **{name: self._buffer(name, width, rows) for name, width in needs.widths},
        }

    def cache(self, operation: Operation) -> dict[str, Any]:
        """Pages of f32 keys and values."""
        needs = row_of(operation).needs(operation)
        row = needs.cache_heads * cache_head_bytes(needs.head_dim, 0, needs.value_dim)
        raw = np.zeros(PAGES * row + 64, np.uint8)
        begin = -raw.ctypes.data % 64
        return {
            "pages": raw[begin : begin + PAGES * row].reshape(PAGES, row),
            "cache": 0,
            "memory": False,
        }

    def state(self, operation: Operation) -> dict[str, Any]:
        """Places for states, full of what no state may read."""
        floats = row_of(operation).needs(operation).state_floats
        self.states = np.full((PLACES, floats + 32), 1e6, np.float32)
        return {"states": self.states, "begin": 16}

    def turns(self, rope: Any) -> Array:
        return rotation_table(rope, 64)


def _runs(rows: int, cuts: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Of all rows, from nothing; states go from place to place at the cuts."""
    ends, begin, place, runs = (*cuts, rows), 0, -1, []
    for end in ends:
        runs.append((end - begin, place, (place + 1) % PLACES))
        begin, place = end, (place + 1) % PLACES
    return runs


def check_native(
    operation: Operation, reads: tuple[Array, ...], weights: dict[str, Array], bound: float
) -> None:
    """The native engine's output against the row's reference in f64, on every instruction set.

    `bound`: of the difference, relative to the largest number of the output.
    """
    expected = row_of(operation).reference(operation, reads, Context(weights))
    for isa in supported_sets():
        alone = Alone(operation, reads, weights, isa)
        for name, output in zip(operation.writes, expected, strict=True):
            native = alone.arrays[name][:, : output.shape[-1]]
            assert np.abs(native - output[0]).max() <= bound * np.abs(output).max(), (isa, name)


def native_output(
    operation: Operation,
    reads: tuple[Array, ...],
    weights: dict[str, Array],
    cuts: tuple[int, ...] = (),
) -> Array:
    """What the native engine writes first: (tokens, features)."""
    isa = supported_sets()[-1]
    name = operation.writes[0]
    widths = {each: x.shape[-1] for each, x in zip(operation.reads, reads, strict=True)}
    width = output_widths(operation, widths)[name]
    output: Array = Alone(operation, reads, weights, isa, cuts).arrays[name][:, :width]
    return output
