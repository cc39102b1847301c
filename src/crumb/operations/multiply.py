"""Multiply: the product of two buffers.

In: two f32 arrays of one shape. Out: that shape.
"""

from __future__ import annotations

from dataclasses import dataclass

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
class Multiply(Operation):
    """output = left * right, elementwise."""

    READS = ("left", "right")

    left: str
    right: str
    output: str


def _reference(_: Multiply, reads: tuple[Array, ...], __: Context) -> tuple[Array, ...]:
    return (reads[0] * reads[1],)


def _gradient(
    _: Multiply, reads: tuple[Array, ...], output: Gradients, __: Context
) -> tuple[Gradients, dict[str, Array]]:
    return (output[0] * reads[1], output[0] * reads[0]), {}


def _native(op: Multiply, program: NativeProgram) -> None:
    program.add(
        "multiply",
        left=program.buffer(op.left),
        right=program.buffer(op.right),
        out=program.buffer(op.output),
    )


ROW = Row(Multiply, same_width, _reference, _gradient, _native)
