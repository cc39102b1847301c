"""Runs operations over named buffers, in any library that follows the array API standard.

In: a stage, its input buffers, weights by name. Out: its outputs. Each kind of operation computes
as its row in crumb/operations says. The oracle of the native engine, and the door to PyTorch.
Refuses nothing: shapes were checked against the Plan when the checkpoint was opened.
"""

from __future__ import annotations

from crumb.architectures.plan import Stage
from crumb.operations.operation import Array, Context, Operation
from crumb.operations.table import row_of


def run_operation(operation: Operation, buffers: dict[str, Array], context: Context) -> None:
    """Run one operation: reads its input buffers, sets its output buffers."""
    reads = tuple(buffers[name] for name in operation.reads)
    outputs = row_of(operation).reference(operation, reads, context)
    buffers.update(zip(operation.writes, outputs, strict=True))


def run_span(
    stage: Stage, begin: int, end: int, buffers: dict[str, Array], context: Context
) -> None:
    """Run operations begin .. end - 1 of a stage, dropping each buffer after its last use."""
    for index in range(begin, end):
        run_operation(stage.operations[index], buffers, context)
        live = stage.live_after(index)
        for name in [name for name in buffers if name not in live]:
            del buffers[name]


def run_stage(stage: Stage, buffers: dict[str, Array], context: Context) -> dict[str, Array]:
    """Run one stage on its inputs; returns its outputs."""
    run_span(stage, 0, len(stage.operations), buffers, context)
    return {name: buffers[name] for name in stage.outputs}
