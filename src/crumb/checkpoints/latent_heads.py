"""The matrix that makes all heads' keys and values of a latent, taken apart into two a head.

In: a family, a Plan, entries by name. Out: entries with the names the Plan has: of each head the
rows of its values as they lie, and those of its keys turned, for they go to the query's side.
Or arrays to be written, put together again as the family's files have them.
Refuses a matrix whose shape does not follow from the Plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.family import Family
from crumb.architectures.plan import Plan
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, common_dtype
from crumb.checkpoints.tensor_map import Entry, Matrix, StoredCodes, StoredFloats
from crumb.errors import CheckpointError
from crumb.operations.headlinear import HeadLinear


@dataclass(frozen=True)
class HeadRows:
    """Some of one head's rows in the matrix of all."""

    entry: Entry
    begin: int
    rows: int
    turned: bool

    def read(self, rows: slice) -> NDArray[Any]:
        """Rows of what the Plan has."""
        first, last, _ = rows.indices(self.entry.shape[1] if self.turned else self.rows)
        if self.turned:
            whole = self._floats(slice(self.begin, self.begin + self.rows))
            return np.ascontiguousarray(whole.T[first:last])
        return self._floats(slice(self.begin + first, self.begin + last))

    def _codes(self, rows: slice) -> Matrix:
        assert isinstance(self.entry, StoredCodes)
        first, last, _ = rows.indices(self.rows)
        return self.entry.read_codes(slice(self.begin + first, self.begin + last))

    def _floats(self, rows: slice) -> NDArray[Any]:
        if isinstance(self.entry, StoredArray | StoredFloats):
            return self.entry.read(rows)
        return self.entry.read_float(rows)

    def stored(self) -> Entry:
        """The entry that the Plan's tensor has."""
        columns = self.entry.shape[1]
        size = self.entry.size_bytes * self.rows // self.entry.shape[0]
        if isinstance(self.entry, StoredArray) and not self.turned:
            row_bytes = self.entry.dtype.itemsize * columns
            begin = self.entry.offset_bytes + self.begin * row_bytes
            shape = (self.rows, columns)
            return replace(self.entry, shape=shape, offset_bytes=begin, size_bytes=size)
        if isinstance(self.entry, StoredCodes) and not self.turned:
            shape = (self.rows, columns)
            return replace(self.entry, shape=shape, size_bytes=size, read_codes=self._codes)
        dtype = np.dtype(np.float32)
        if isinstance(self.entry, StoredArray | StoredFloats):
            dtype = self.entry.dtype
        shape = (columns, self.rows) if self.turned else (self.rows, columns)
        return StoredFloats(dtype, shape, size, self.entry.source, self.read)


@dataclass(frozen=True)
class WholeMatrix:
    """The matrix of all heads of a block."""

    name: str
    keys: HeadLinear
    values: HeadLinear

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of each head's keys and values behind each other, the latent's features."""
        rows = self.keys.in_features + self.values.out_features
        return self.keys.heads * rows, self.values.in_features


def whole_matrices(family: Family, plan: Plan) -> Iterator[WholeMatrix]:
    """That of each block with latent attention."""
    for block, stage in enumerate(plan.stages[1:-1]):
        both = [each for each in stage.operations if isinstance(each, HeadLinear)]
        if both:
            name = f"{family.tensors['latent_up'].format(block=block)}.weight"
            yield WholeMatrix(name, *both)


def heads_apart(family: Family, plan: Plan, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """All entries, heads each for itself; those that are already stay. Raises: CheckpointError."""
    separate = dict(entries)
    for whole in whole_matrices(family, plan):
        if whole.name in separate:
            separate = dict(_of_block(whole, separate.pop(whole.name))) | separate
    return separate


def _of_block(whole: WholeMatrix, entry: Entry) -> Iterator[tuple[str, Entry]]:
    keys, values = whole.keys, whole.values
    plain, value_dim = keys.in_features, values.out_features
    if tuple(entry.shape) != whole.shape:
        raise CheckpointError(
            "a tensor does not have the shape its configuration implies",
            where=whole.name,
            expected=list(whole.shape),
            found=list(entry.shape),
        )
    for head in range(keys.heads):
        begin = head * (plain + value_dim)
        yield keys.matrix(head).name, HeadRows(entry, begin, plain, turned=True).stored()
        rows = HeadRows(entry, begin + plain, value_dim, turned=False)
        yield values.matrix(head).name, rows.stored()


def heads_together(
    family: Family, plan: Plan, arrays: Mapping[str, ArrayToWrite]
) -> dict[str, ArrayToWrite]:
    """All arrays, those of heads in one matrix of each block where they all are floats."""
    together = dict(arrays)
    for whole in whole_matrices(family, plan):
        keys, values = whole.keys.tensors(), whole.values.tensors()
        names = [spec.name for pair in zip(keys, values, strict=True) for spec in pair]
        if all(name in together for name in names):
            parts = [together.pop(name) for name in names]
            together[whole.name] = _whole(whole, parts)
    return together


def _whole(whole: WholeMatrix, parts: list[ArrayToWrite]) -> ArrayToWrite:
    dtype = common_dtype(parts)

    def read() -> NDArray[Any]:
        rows = [part.read() for part in parts]
        rows[::2] = [key.T for key in rows[::2]]
        return np.concatenate([each.astype(dtype, copy=False) for each in rows])

    return ArrayToWrite(dtype, whole.shape, read)
