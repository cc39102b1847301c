"""The matrix that makes all heads' keys and values of a latent, taken apart into two a head.

In: a family, a Plan, entries by name. Out: entries with the names the Plan has: of each head the
rows of its values as they lie, and those of its keys turned, for they go to the query's side.
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
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, StoredFloats
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
        dtype = np.dtype(np.float32)
        if isinstance(self.entry, StoredArray | StoredFloats):
            dtype = self.entry.dtype
        shape = (columns, self.rows) if self.turned else (self.rows, columns)
        return StoredFloats(dtype, shape, size, self.entry.source, self.read)


def heads_apart(family: Family, plan: Plan, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """All entries, heads each for itself. Raises: CheckpointError."""
    separate = dict(entries)
    for block, stage in enumerate(plan.stages[1:-1]):
        both = [each for each in stage.operations if isinstance(each, HeadLinear)]
        if not both:
            continue
        name = f"{family.tensors['latent_up'].format(block=block)}.weight"
        if name in separate:
            separate |= dict(_of_block(name, separate.pop(name), *both))
    return separate


def _of_block(
    name: str, entry: Entry, keys: HeadLinear, values: HeadLinear
) -> Iterator[tuple[str, Entry]]:
    plain, value_dim, rank = keys.in_features, values.out_features, values.in_features
    expected = (keys.heads * (plain + value_dim), rank)
    if tuple(entry.shape) != expected:
        raise CheckpointError(
            "a tensor does not have the shape its configuration implies",
            where=name,
            expected=list(expected),
            found=list(entry.shape),
        )
    for head in range(keys.heads):
        begin = head * (plain + value_dim)
        yield keys.matrix(head).name, HeadRows(entry, begin, plain, turned=True).stored()
        rows = HeadRows(entry, begin + plain, value_dim, turned=False)
        yield values.matrix(head).name, rows.stored()
