"""An activation and the product behind it as one operation: one pass over memory instead of two.

In: a stage of a Plan and where its buffers lie. Out: its operations, some pairs of them Gates.
Each element is computed as before, so the bits are the same. Pairs whose arrays overlap stay two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from crumb.architectures.plan import Stage
from crumb.operations.activation import Activation
from crumb.operations.gate import Gate
from crumb.operations.multiply import Multiply
from crumb.operations.operation import Operation
from crumb.run.buffers import Place


def with_gates(
    stage: Stage, places: Mapping[str, Place], begin: int = 0, end: int | None = None
) -> Iterator[Operation]:
    """Operations begin .. end - 1 of a stage.

    An activation and the product that alone reads it become a Gate.
    """
    waiting: Activation | None = None
    for index, operation in enumerate(stage.operations[begin:end], begin):
        if waiting is not None:
            yield from _gate(waiting, operation, stage.live_after(index), places)
            waiting = None
        elif isinstance(operation, Activation):
            waiting = operation
        else:
            yield operation
    if waiting is not None:
        yield waiting


def _gate(
    first: Activation, second: Operation, live: Collection[str], places: Mapping[str, Place]
) -> tuple[Operation, ...]:
    if not isinstance(second, Multiply) or first.output in live or first.number is not None:
        return first, second
    others = [name for name in second.reads if name != first.output]
    source, out = places[first.input], places[second.output]
    apart = out.end <= source.offset or source.end <= out.offset
    if len(others) != 1 or not (apart or out == source):
        return first, second
    return (Gate(first.input, others[0], second.output, first.function),)
