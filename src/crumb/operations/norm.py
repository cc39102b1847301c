"""Norm: features over their root mean square, or with their mean taken off first.

In: f32 (batch, tokens, features). Out: the same shape. Groups of features are normalised alone:
the query and key norms of heads, group norms. Sources: RMSNorm, arXiv 1910.07467, eq. 4; layer
norm, arXiv 1607.06450, eq. 4.
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
    same_width,
)


@dataclass(frozen=True)
class Norm(Operation):
    """output = input / root(mean(input^2) + epsilon) * (offset + weight) + bias, by groups."""

    input: str  # (batch, tokens, features)
    output: str
    kind: str  # "rms", or "layer": the mean is taken off first
    weight: str | None  # (features / groups,); where per_channel (features,), or stacked
    bias: str | None  # as weight
    epsilon: float  # under the root
    features: int
    groups: int = 1  # of features / groups neighbours
    per_channel: bool = False  # each group has weights of its own
    stacked: bool = False  # those lie as (groups, features / groups)
    offset: float = 0.0  # added to the weight: some files hold its distance from 1

    def tensors(self) -> tuple[TensorSpec, ...]:
        width = self.features // self.groups
        shape: tuple[int, ...] = (self.features if self.per_channel else width,)
        if self.stacked:
            shape = (self.groups, width)
        names = (self.weight, self.bias)
        return tuple(TensorSpec(name, shape, matrix=False) for name in names if name is not None)


def _grouped(op: Norm, array: Array) -> Array:
    shape = (*array.shape[:-1], op.groups, op.features // op.groups)
    return array_namespace(array).reshape(array, shape)


def _of_groups(op: Norm, name: str, context: Context) -> Array:
    """A weight or bias as it meets grouped features: (groups or 1, features / groups)."""
    array = context.weights[name]
    return array_namespace(array).reshape(array, (-1, op.features // op.groups))


def _gain(op: Norm, context: Context) -> Array | float:
    """What normalised features are multiplied with; 1 where there is no weight."""
    return 1.0 if op.weight is None else op.offset + _of_groups(op, op.weight, context)


def _normalized(op: Norm, x: Array) -> tuple[Array, Array]:
    """Grouped features without weight, and what they were multiplied with."""
    xp = array_namespace(x)
    x = _grouped(op, x)
    if op.kind == "layer":
        x = x - xp.mean(x, axis=-1, keepdims=True)
    factor = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + op.epsilon)
    return x * factor, factor


def _reference(op: Norm, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    xp = array_namespace(reads[0])
    y = _normalized(op, reads[0])[0] * _gain(op, context)
    if op.bias is not None:
        y += _of_groups(op, op.bias, context)
    return (xp.reshape(y, reads[0].shape),)


def _gradient(
    op: Norm, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    (x,), xp = reads, array_namespace(reads[0])
    normalized, factor = _normalized(op, x)
    gradient = _grouped(op, output[0])
    trained = {}
    for name, product in ((op.weight, gradient * normalized), (op.bias, gradient)):
        if name is not None and name in context.trained:
            total = xp.sum(xp.reshape(product, (-1, op.groups, product.shape[-1])), axis=0)
            total = total if op.per_channel else xp.sum(total, axis=0)
            trained[name] = xp.reshape(total, context.weights[name].shape)
    inner = gradient * _gain(op, context)
    along = xp.mean(inner * normalized, axis=-1, keepdims=True)
    if op.kind == "layer":
        inner = inner - xp.mean(inner, axis=-1, keepdims=True)
    return (xp.reshape(factor * (inner - normalized * along), x.shape),), trained


def _native(op: Norm, program: NativeProgram) -> None:
    weight, bias = program.vector(op.weight), program.vector(op.bias)
    if weight is None:
        weight = np.ones(op.features // op.groups, np.float32)
    else:
        weight = weight.reshape(-1) + np.float32(op.offset)
    program.add(
        "norm",
        input=program.buffer(op.input),
        out=program.buffer(op.output),
        weight=weight,
        bias=None if bias is None else bias.reshape(-1),
        epsilon=op.epsilon,
        centered=op.kind == "layer",
        groups=op.groups,
    )


ROW = Row(Norm, same_width, _reference, _gradient, _native)
