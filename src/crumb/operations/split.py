"""Split: one buffer's features dealt out to several.

In: f32 (batch, tokens, outer * parts * inner). Out: for each part (batch, tokens, outer * inner).
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from crumb.operations.operation import Array, Context, Gradients, NativeProgram, Operation, Row


@dataclass(frozen=True)
class Split(Operation):
    """Features viewed as (outer, parts, inner); output p is part p of every outer, joined."""

    WRITES = ("outputs",)

    input: str  # (batch, tokens, outer * parts * inner)
    outputs: tuple[str, ...]  # each (batch, tokens, outer * inner)
    outer: int
    inner: int


def _reference(op: Split, reads: tuple[Array, ...], _: Context) -> tuple[Array, ...]:
    (x,), xp = reads, array_namespace(reads[0])
    parts = xp.reshape(x, (*x.shape[:-1], op.outer, len(op.outputs), op.inner))
    wide = (*x.shape[:-1], op.outer * op.inner)
    return tuple(xp.reshape(parts[..., part, :], wide) for part in range(len(op.outputs)))


def _gradient(
    op: Split, reads: tuple[Array, ...], output: Gradients, _: Context
) -> tuple[Gradients, dict[str, Array]]:
    (x,), xp = reads, array_namespace(reads[0])
    narrow = (*x.shape[:-1], op.outer, op.inner)
    nothing = xp.zeros(narrow, dtype=x.dtype, device=x.device)
    parts = [nothing if part is None else xp.reshape(part, narrow) for part in output]
    return (xp.reshape(xp.stack(parts, axis=-2), x.shape),), {}


def _native(op: Split, program: NativeProgram) -> None:
    program.add(
        "split",
        input=program.buffer(op.input),
        outs=[program.buffer(name) for name in op.outputs],
        outer=op.outer,
        inner=op.inner,
    )


ROW = Row(
    Split,
    lambda op, widths: (op.outer * op.inner,) * len(op.outputs),
    _reference,
    _gradient,
    _native,
)
