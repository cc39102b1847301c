"""Gate: an activation and the product behind it in one pass over memory.

In: two f32 arrays of one shape. Out: that shape. No family writes it: run/gates.py makes it of an
Activation and the Multiply that alone reads it, for the native engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from crumb.operations.activation import FUNCTIONS
from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    NativeProgram,
    Operation,
    Row,
    same_width,
)


@dataclass(frozen=True)
class Gate(Operation):
    """output = function(input) * right."""

    READS = ("input", "right")

    input: str
    right: str
    output: str
    function: str  # a name of activation.FUNCTIONS


def _reference(op: Gate, reads: tuple[Array, ...], _: Context) -> tuple[Array, ...]:
    return (FUNCTIONS[op.function].value(reads[0]) * reads[1],)


def _gradient(
    op: Gate, reads: tuple[Array, ...], output: Gradients, _: Context
) -> tuple[Gradients, dict[str, Array]]:
    (x, right), function = reads, FUNCTIONS[op.function]
    return (output[0] * right * function.derivative(x), output[0] * function.value(x)), {}


def _native(op: Gate, program: NativeProgram) -> None:
    program.add(
        "gate",
        input=program.buffer(op.input),
        right=program.buffer(op.right),
        out=program.buffer(op.output),
        function=FUNCTIONS[op.function].native,
    )


ROW = Row(Gate, same_width, _reference, _gradient, _native)
