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
from crumb.operations.table import row_of

Orders = dict[str, NDArray[np.int32]]


def formats_of(checkpoint: Checkpoint) -> dict[str, Format]:
    """Formats of the matrices that run packed."""
    ordered = ordered_matrices(checkpoint.plan)
    return {
        name: entry.format
        for name, entry in checkpoint.tensors.entries.items()
        if isinstance(entry, Quantized) and runs_packed(name, entry, ordered)
    }


def orders_of(checkpoint: Checkpoint) -> Orders:
    """Of the matrices that run packed, those whose columns stand in another order: each's order.

    Column k belongs to input order[k]. Equal orders are one array.
    """
    ordered, different = ordered_matrices(checkpoint.plan), dict[bytes, NDArray[np.int32]]()
    orders: Orders = {}
    for name, entry in checkpoint.tensors.entries.items():
        if not isinstance(entry, Quantized) or not runs_packed(name, entry, ordered):
            continue
        if entry.order is not None:
            order = np.ascontiguousarray(entry.order, np.int32)
            orders[name] = different.setdefault(order.tobytes(), order)
    return orders


def weights_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the plan's tensors as they are used: what is converted counts as it is then."""
    ordered, tensors = ordered_matrices(checkpoint.plan), checkpoint.tensors
    return sum(
        _used_bytes(spec.name, tensors.entry(spec.name), ordered)
        for spec in checkpoint.plan.tensors()
    )


def ordered_matrices(plan: Plan) -> set[str]:
    """Matrices whose columns must stand as the features do: their rows are looked up, or their
    inputs dealt out."""
    names: set[str] = set()
    for operation in (op for stage in plan.stages for op in stage.operations):
        grouped = row_of(operation).needs(operation).grouped
        if isinstance(operation, Embed):
            names.add(operation.weight)
        elif grouped is not None:
            names |= {weight for weight, _ in grouped.matrices}
    return names


def runs_packed(name: str, entry: Quantized, ordered: set[str]) -> bool:
    """Else it runs decoded to f32: exact, but as large as floats."""
    return entry.order is None or name not in ordered


def _used_bytes(name: str, entry: Entry, ordered: set[str]) -> int:
    if isinstance(entry, Quantized) and not runs_packed(name, entry, ordered):
        return np.dtype(np.float32).itemsize * prod(entry.shape)
    return entry.used_bytes
