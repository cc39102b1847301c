"""Embed: rows of a table, looked up by token or position.

In: indices (batch, tokens). Out: f32 (batch, tokens, features). The indices have no gradient.
Refuses nothing: tokens outside the vocabulary are refused where they enter a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    NativeProgram,
    Operation,
    Row,
    TensorSpec,
    as_numpy,
)


@dataclass(frozen=True)
class Embed(Operation):
    """output[t] = weight[input[t] + first_row]."""

    input: str  # (batch, tokens) indices
    output: str  # (batch, tokens, features)
    weight: str  # (rows, features)
    rows: int
    features: int
    first_row: int = 0

    def tensors(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.weight, (self.rows, self.features), matrix=True),)


def _reference(op: Embed, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    (index,) = reads
    xp = array_namespace(index)
    flat = xp.take(context.weights[op.weight], xp.reshape(index, (-1,)) + op.first_row, axis=0)
    return (xp.reshape(flat, (*index.shape, op.features)),)


def _gradient(
    op: Embed, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    if op.weight not in context.trained:
        return (None,), {}
    index, gradient = as_numpy(reads[0]).ravel() + op.first_row, as_numpy(output[0])
    total = np.zeros((op.rows, op.features), np.float32)
    np.add.at(total, index, gradient.reshape(-1, op.features))  # the standard has no scatter
    return (None,), {op.weight: array_namespace(output[0]).asarray(total)}


def _native(op: Embed, program: NativeProgram) -> None:
    program.add(
        "embed",
        of_positions=op.input == "positions",
        out=program.buffer(op.output),
        matrix=program.matrix(op.weight),
        first_row=op.first_row,
    )


ROW = Row(Embed, lambda op, widths: (op.features,), _reference, _gradient, _native)
