"""Native kernels in place of the array executor's rows where NumPy is slow.

In: operations on f32 NumPy arrays of whole texts. Out: arrays equal to the rows' own but for
roundings. Calibration walks with it; no oracle does. What has no kernel here, or would gain
nothing (products, sums, matrix products), runs as its row says.
"""

from __future__ import annotations

import numpy as np

from crumb.kernels.attention import causal_attention
from crumb.kernels.rows import activate, normalize, rotate
from crumb.operations.activation import Activation
from crumb.operations.attention import Attention
from crumb.operations.norm import Norm
from crumb.operations.operation import Array, Context, Operation, Reference
from crumb.operations.rotary import Rotary, rotation
from crumb.operations.table import OPERATIONS


def _norm(op: Norm, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    if op.groups > 1:
        return OPERATIONS[Norm].reference(op, reads, context)
    bias = None if op.bias is None else context.weights[op.bias]
    weight, centered = context.weights[op.weight] + op.offset, op.kind == "layer"
    return (normalize(reads[0], weight, bias, op.epsilon, centered),)


def _rotary(op: Rotary, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    turns = np.concatenate(rotation(op.rope, reads[1], context), axis=-1)[:, 0]
    return (rotate(reads[0], turns, op.heads, op.style == "interleaved"),)


def _attention(op: Attention, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    query, key, value = reads
    if not op.causal or context.states is not None or key.shape[1] != query.shape[1]:
        # encoders and sessions: not whole causal texts
        return OPERATIONS[Attention].reference(op, reads, context)
    heads = op.heads, op.key_value_heads
    return (causal_attention(query, key, value, *heads, op.scale, op.soft_cap, op.window),)


def _activation(op: Activation, reads: tuple[Array, ...], _: Context) -> tuple[Array, ...]:
    return (activate(reads[0], op.function, op.number),)


FAST_STEPS: dict[type[Operation], Reference] = {
    Norm: _norm,
    Rotary: _rotary,
    Attention: _attention,
    Activation: _activation,
}
"""The rows that differ."""
