"""How the native engine takes each matrix of a checkpoint: packed or as floats, and its bytes.

In: an opened checkpoint. Out: formats of the matrices that run packed, the orders of their columns,
the bytes that all tensors take once they are in memory. Refuses nothing.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.tensor_map import Entry, Quantized
from crumb.formats.catalog import Format
from crumb.operations.embed import Embed

Orders = dict[str, NDArray[np.int32]]


def formats_of(checkpoint: Checkpoint) -> dict[str, Format]:
    """Formats of the matrices that run packed."""
    embedded = embedded_matrices(checkpoint.plan)
    return {
        name: entry.format
        for name, entry in checkpoint.tensors.entries.items()
        if isinstance(entry, Quantized) and runs_packed(name, entry, embedded)
    }


def orders_of(checkpoint: Checkpoint) -> Orders:
    """Of the matrices that run packed, those whose columns stand in another order: each's order.

    Column k belongs to input order[k]. Equal orders are one array.
    """
    embedded, different = embedded_matrices(checkpoint.plan), dict[bytes, NDArray[np.int32]]()
    found: Orders = {}
    for name, entry in checkpoint.tensors.entries.items():
        if not isinstance(entry, Quantized) or not runs_packed(name, entry, embedded):
            continue
        if entry.order is not None:
            order = np.ascontiguousarray(entry.order, np.int32)
            found[name] = different.setdefault(order.tobytes(), order)
    return found


def weights_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the plan's tensors as they are used: what is converted counts as it is then."""
    embedded, tensors = embedded_matrices(checkpoint.plan), checkpoint.tensors
    return sum(
        _used_bytes(spec.name, tensors.entry(spec.name), embedded)
        for spec in checkpoint.plan.tensors()
    )


def embedded_matrices(plan: Plan) -> set[str]:
    """Matrices whose rows are looked up; then columns must stand as the features do."""
    operations = (op for stage in plan.stages for op in stage.operations)
    return {op.weight for op in operations if isinstance(op, Embed)}


def runs_packed(name: str, entry: Quantized, embedded: set[str]) -> bool:
    """Else it runs decoded to f32: exact, but as large as floats."""
    return entry.order is None or name not in embedded


def _used_bytes(name: str, entry: Entry, embedded: set[str]) -> int:
    if isinstance(entry, Quantized) and not runs_packed(name, entry, embedded):
        return np.dtype(np.float32).itemsize * prod(entry.shape)
    return entry.used_bytes
