"""Matrices that a family's files hold as (in_features, out_features), turned on the way.

In: a Plan; entries as a directory has them, or an array to be written. Out: floats as the Plan has
them, or as the files do. Codes always lie by outputs, whoever wrote them, so they stay.
Refuses nothing: a shape that does not follow from the Plan is refused with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.architectures.registry import families
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray
from crumb.checkpoints.tensor_map import Entry, StoredFloats


def transposed_names(plan: Plan) -> frozenset[str]:
    """The matrices that lie transposed."""
    family, blocks = families()[plan.family], len(plan.stages) - 2
    bare = [
        family.tensors[role].format(block=block)
        for role in family.transposed
        for block in range(blocks)
    ]
    return frozenset(spec.name for spec in plan.tensors()) & {
        *bare,
        *(f"{name}.weight" for name in bare),
    }


def turned(plan: Plan, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """All entries as the Plan has them."""
    names = transposed_names(plan)
    return {name: _turned(entry) if name in names else entry for name, entry in entries.items()}


def turned_back(plan: Plan, name: str, array: ArrayToWrite) -> ArrayToWrite:
    """An array as the family's files have it; `name` is what it is written as."""
    if name not in transposed_names(plan):
        return array
    return replace(array, shape=array.shape[::-1], read=lambda: array.read().T)


def _turned(entry: Entry) -> Entry:
    if not isinstance(entry, StoredArray | StoredFloats) or len(entry.shape) != 2:
        return entry
    shape = entry.shape[::-1]
    return StoredFloats(entry.dtype, shape, entry.size_bytes, entry.source, _rows_of(entry))


def _rows_of(entry: StoredArray | StoredFloats) -> Callable[[slice], NDArray[Any]]:
    def read(rows: slice) -> NDArray[Any]:
        if isinstance(entry, StoredArray):
            return np.ascontiguousarray(entry.read_columns(rows).T)
        return np.ascontiguousarray(entry.read()[:, rows].T)

    return read
