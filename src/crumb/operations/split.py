"""Split: one buffer's features dealt out to several.

In: f32 (batch, tokens, outer * sum of widths). Out: for each part (batch, tokens, outer * width).
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from crumb.operations.operation import Array, Context, Gradients, NativeProgram, Operation, Row


@dataclass(frozen=True)
class Split(Operation):
    """Features viewed as (outer, sum of widths); output p is part p of every outer, joined."""

    WRITES = ("outputs",)

    input: str  # (batch, tokens, outer * sum of widths)
    outputs: tuple[str, ...]  # each (batch, tokens, outer * its width)
    outer: int
    widths: tuple[int, ...]  # of each part, in one outer


def _reference(op: Split, reads: tuple[Array, ...], _: Context) -> tuple[Array, ...]:
    (x,), xp = reads, array_namespace(reads[0])
    apart = xp.reshape(x, (*x.shape[:-1], op.outer, sum(op.widths)))
    parts, begin = [], 0
    for width in op.widths:
        part = apart[..., begin : begin + width]
        parts.append(xp.reshape(part, (*x.shape[:-1], op.outer * width)))
        begin += width
    return tuple(parts)


def _gradient(
    op: Split, reads: tuple[Array, ...], output: Gradients, _: Context
) -> tuple[Gradients, dict[str, Array]]:
    (x,), xp = reads, array_namespace(reads[0])
    parts = []
    for part, width in zip(output, op.widths, strict=True):
        narrow = (*x.shape[:-1], op.outer, width)
        if part is None:
            parts.append(xp.zeros(narrow, dtype=x.dtype, device=x.device))
        else:
            parts.append(xp.reshape(part, narrow))
    return (xp.reshape(xp.concat(parts, axis=-1), x.shape),), {}


def _native(op: Split, program: NativeProgram) -> None:
    program.add(
        "split",
        input=program.buffer(op.input),
        outs=[program.buffer(name) for name in op.outputs],
        outer=op.outer,
        widths=list(op.widths),
    )


ROW = Row(
    Split,
    lambda op, _: tuple(op.outer * width for width in op.widths),
    _reference,
    _gradient,
    _native,
)
