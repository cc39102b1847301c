"""Add: the sum of two buffers.

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
class Add(Operation):
    """output = left + right, elementwise."""

    READS = ("left", "right")

    left: str
    right: str
    output: str


def _reference(_: Add, reads: tuple[Array, ...], __: Context) -> tuple[Array, ...]:
    return (reads[0] + reads[1],)


def _gradient(
    _: Add, __: tuple[Array, ...], output: Gradients, ___: Context
) -> tuple[Gradients, dict[str, Array]]:
    return (output[0], output[0]), {}


def _native(op: Add, program: NativeProgram) -> None:
    program.add(
        "add",
        left=program.buffer(op.left),
        right=program.buffer(op.right),
        out=program.buffer(op.output),
    )


ROW = Row(Add, same_width, _reference, _gradient, _native)
