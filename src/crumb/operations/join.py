"""Join: several buffers' features put together; the inverse of Split, with parts of any width.

In: f32 (batch, tokens, outer * width of the part), or (batch, tokens, width) for a part that every
outer repeats. Out: f32 (batch, tokens, outer * sum of widths).
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from crumb.operations.operation import Array, Context, Gradients, NativeProgram, Operation, Row


@dataclass(frozen=True)
class Join(Operation):
    """Features viewed as (outer, sum of widths): part p stands behind part p - 1 in every outer."""

    READS = ("inputs",)

    inputs: tuple[str, ...]  # each (batch, tokens, outer * width or width)
    output: str  # (batch, tokens, outer * sum of widths)
    widths: tuple[int, ...]  # of each part, in one outer
    outer: int


def _reference(op: Join, reads: tuple[Array, ...], _: Context) -> tuple[Array, ...]:
    xp = array_namespace(reads[0])
    head = reads[0].shape[:-1]
    parts = [
        xp.broadcast_to(xp.reshape(x, (*head, -1, width)), (*head, op.outer, width))
        for x, width in zip(reads, op.widths, strict=True)
    ]
    return (xp.reshape(xp.concat(parts, axis=-1), (*head, op.outer * sum(op.widths))),)


def _gradient(
    op: Join, reads: tuple[Array, ...], output: Gradients, _: Context
) -> tuple[Gradients, dict[str, Array]]:
    xp = array_namespace(reads[0])
    whole = xp.reshape(output[0], (*reads[0].shape[:-1], op.outer, sum(op.widths)))
    gradients, begin = [], 0
    for x, width in zip(reads, op.widths, strict=True):
        part = whole[..., begin : begin + width]
        if x.shape[-1] != op.outer * width:
            part = xp.sum(part, axis=-2)
        gradients.append(xp.reshape(part, x.shape))
        begin += width
    return tuple(gradients), {}


def _native(op: Join, program: NativeProgram) -> None:
    program.add(
        "join",
        inputs=[program.buffer(name) for name in op.inputs],
        out=program.buffer(op.output),
        widths=list(op.widths),
        outer=op.outer,
    )


ROW = Row(Join, lambda op, widths: (op.outer * sum(op.widths),), _reference, _gradient, _native)
