"""The array executor's table with native kernels where NumPy is slow.

In: operations on f32 NumPy arrays of whole texts. Out: buffers, equal to the array executor's but
for roundings. Calibration walks with it; no oracle does. What has no kernel here, or would gain
nothing (products, sums, matrix products), is the array executor's own row.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping

import numpy as np

from crumb.architectures.plan import Activation, Attention, Norm, Operation, Rotary
from crumb.kernels.attention import causal_attention
from crumb.kernels.rows import activate, normalize, rotate
from crumb.run.array_executor import EXECUTE, Array, Context, Execute, rotation


def _norm(op: Norm, buffers: dict[str, Array], context: Context) -> None:
    bias = None if op.bias is None else context.weights[op.bias]
    weight, centered = context.weights[op.weight], op.kind == "layer"
    buffers[op.output] = normalize(buffers[op.input], weight, bias, op.epsilon, centered)


def _rotary(op: Rotary, buffers: dict[str, Array], context: Context) -> None:
    turns = np.concatenate(rotation(op, buffers[op.positions], context), axis=-1)[:, 0]
    x, interleaved = buffers[op.input], op.style == "interleaved"
    buffers[op.output] = rotate(x, turns, op.heads, interleaved)


def _attention(op: Attention, buffers: dict[str, Array], context: Context) -> None:
    query, key = buffers[op.query], buffers[op.key]
    if not op.causal or context.states is not None or key.shape[1] != query.shape[1]:
        EXECUTE[Attention](op, buffers, context)  # encoders and sessions: not whole causal texts
        return
    buffers[op.output] = causal_attention(
        query,
        key,
        buffers[op.value],
        op.heads,
        op.key_value_heads,
        op.scale,
        op.soft_cap,
        op.window,
    )


def _activation(op: Activation, buffers: dict[str, Array], _: Context) -> None:
    buffers[op.output] = activate(buffers[op.input], op.function)


NATIVE: dict[type[Operation], Execute] = {
    Norm: _norm,
    Rotary: _rotary,
    Attention: _attention,
    Activation: _activation,
}
"""The rows that differ."""

FAST_STEPS: MutableMapping[type[Operation], Execute] = ChainMap(NATIVE, EXECUTE)
"""What calibration runs."""
