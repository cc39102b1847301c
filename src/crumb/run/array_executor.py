"""The array executor: a Plan's operations, written once against the array API standard.

In: operations, f32 weights by name, buffers. Out: buffers. It is the oracle, the calibrator's
engine and the evaluator; the same lines run on NumPy and on PyTorch.
Refuses nothing: shapes were checked against the Plan when the checkpoint was opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from numpy.typing import NDArray

from crumb.architectures.plan import (
    Activation,
    Add,
    Attention,
    Embed,
    Linear,
    Multiply,
    Norm,
    Operation,
    Rotary,
    Split,
    Stage,
)
from crumb.architectures.rope import Rope

Array = Any
"""An array of any library that follows the standard: f32 (batch, tokens, features) in buffers."""

QUERY_BLOCK = 128
"""Queries whose scores are held at once."""


Execute = Callable[[Any, dict[str, Array], "Context"], None]
"""Runs one operation: reads its input buffers, sets its output buffers."""


@dataclass
class Context:
    """What operations share: weights by name, and the state that sessions keep between calls."""

    weights: Mapping[str, Array]
    states: dict[str, tuple[Array, ...]] | None = None  # slot -> arrays; None: nothing is kept
    rotations: dict[tuple[Rope, int, int], tuple[Array, Array]] = field(default_factory=dict)
    execute: Mapping[type[Operation], Execute] = field(default_factory=lambda: EXECUTE)


def as_numpy(array: Array) -> NDArray[Any]:
    """An array of any library and device as NumPy's."""
    return np.asarray(array.cpu() if is_torch_array(array) else array)


def run_span(
    stage: Stage, begin: int, end: int, buffers: dict[str, Array], context: Context
) -> None:
    """Run operations begin .. end - 1 of a stage, dropping each buffer after its last use."""
    for index in range(begin, end):
        operation = stage.operations[index]
        context.execute[type(operation)](operation, buffers, context)
        live = stage.live_after(index)
        for name in [name for name in buffers if name not in live]:
            del buffers[name]


def run_stage(stage: Stage, buffers: dict[str, Array], context: Context) -> dict[str, Array]:
    """Run one stage on its inputs; returns its outputs."""
    run_span(stage, 0, len(stage.operations), buffers, context)
    return {name: buffers[name] for name in stage.outputs}


def _embed(op: Embed, buffers: dict[str, Array], context: Context) -> None:
    index = buffers[op.input]
    xp = array_namespace(index)
    flat = xp.take(context.weights[op.weight], xp.reshape(index, (-1,)), axis=0)
    buffers[op.output] = xp.reshape(flat, (*index.shape, op.features))


def _norm(op: Norm, buffers: dict[str, Array], context: Context) -> None:
    x = buffers[op.input]
    xp = array_namespace(x)
    if op.kind == "layer":
        x = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(x * x, axis=-1, keepdims=True)
    x = x * (1.0 / xp.sqrt(variance + op.epsilon))
    x *= context.weights[op.weight]
    if op.bias is not None:
        x += context.weights[op.bias]
    buffers[op.output] = x


def _linear(op: Linear, buffers: dict[str, Array], context: Context) -> None:
    x = buffers[op.input]
    xp = array_namespace(x)
    flat = xp.reshape(x, (-1, op.in_features))
    y = xp.matmul(flat, xp.matrix_transpose(context.weights[op.weight]))
    if op.bias is not None:
        y += context.weights[op.bias]
    buffers[op.output] = xp.reshape(y, (*x.shape[:-1], op.out_features))


def _split(op: Split, buffers: dict[str, Array], _: Context) -> None:
    x = buffers[op.input]
    xp = array_namespace(x)
    parts = xp.reshape(x, (*x.shape[:-1], op.outer, len(op.outputs), op.inner))
    for index, name in enumerate(op.outputs):
        buffers[name] = xp.reshape(parts[..., index, :], (*x.shape[:-1], op.outer * op.inner))


def rotation(op: Rotary, positions: Array, context: Context) -> tuple[Array, Array]:
    """Cosine and sine for each position and pair, (tokens, 1, dimensions / 2)."""
    xp = array_namespace(positions)
    first, count = int(positions[0, 0]), positions.shape[1]
    key = (op.rope, first, count)
    if key not in context.rotations:
        device = positions.device
        places = xp.astype(positions[0, :], xp.float64)
        frequencies = xp.asarray(op.rope.frequencies(), device=device)
        angle = places[:, None, None] * frequencies[None, None, :]
        magnitude = op.rope.magnitude()
        turned = (xp.cos(angle) * magnitude, xp.sin(angle) * magnitude)
        context.rotations[key] = (
            xp.astype(turned[0], xp.float32),
            xp.astype(turned[1], xp.float32),
        )
    return context.rotations[key]


def _rotary(op: Rotary, buffers: dict[str, Array], context: Context) -> None:
    x, positions = buffers[op.input], buffers[op.positions]
    xp = array_namespace(x)
    cosine, sine = rotation(op, positions, context)
    heads = xp.reshape(x, (*x.shape[:-1], op.heads, -1))
    dimensions = op.rope.dimensions
    turning, rest = heads[..., :dimensions], heads[..., dimensions:]
    if op.style == "half":
        a, b = turning[..., : dimensions // 2], turning[..., dimensions // 2 :]
        turned = xp.concat([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        pairs = xp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
        turned = xp.reshape(pairs, turning.shape)
    if rest.shape[-1]:
        turned = xp.concat([turned, rest], axis=-1)
    buffers[op.output] = xp.reshape(turned, x.shape)


def _attention(op: Attention, buffers: dict[str, Array], context: Context) -> None:
    query, key, value = buffers[op.query], buffers[op.key], buffers[op.value]
    xp = array_namespace(query)
    batch, tokens, _ = query.shape
    kept, group = op.key_value_heads, op.heads // op.key_value_heads
    query = xp.reshape(query, (batch, tokens, kept, group, op.head_dim))
    query = xp.permute_dims(query, (0, 2, 3, 1, 4)) * op.scale  # (batch, kept, group, tokens, dim)
    key = xp.permute_dims(xp.reshape(key, (batch, -1, kept, op.head_dim)), (0, 2, 1, 3))
    value = xp.permute_dims(xp.reshape(value, (batch, -1, kept, op.head_dim)), (0, 2, 1, 3))
    if context.states is not None and op.state is not None:
        if op.state in context.states:
            past_key, past_value = context.states[op.state]
            key = xp.concat([past_key, key], axis=2)
            value = xp.concat([past_value, value], axis=2)
        context.states[op.state] = (key, value)
    first = key.shape[2] - tokens if op.causal else 0
    blocks = []
    for begin in range(0, tokens, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, tokens)
        block = query[:, :, :, begin:end, :]
        blocks.append(_attend(op, block, key, value, first + begin))
    mixed = xp.concat(blocks, axis=3)
    mixed = xp.permute_dims(mixed, (0, 3, 1, 2, 4))
    buffers[op.output] = xp.reshape(mixed, (batch, tokens, op.heads * op.head_dim))


def _attend(op: Attention, query: Array, key: Array, value: Array, place: int) -> Array:
    """Attention of a block of queries whose first sits at `place` among the keys."""
    xp = array_namespace(query)
    batch, kept, group, tokens, dim = query.shape
    end = place + tokens if op.causal else key.shape[2]
    begin = 0 if op.window is None else max(0, place - op.window + 1)
    key, value = key[:, :, begin:end, :], value[:, :, begin:end, :]
    flat = xp.reshape(query, (batch, kept, group * tokens, dim))
    scores = xp.matmul(flat, xp.matrix_transpose(key))
    scores = xp.reshape(scores, (batch, kept, group, tokens, end - begin))
    if op.soft_cap is not None:
        scores = op.soft_cap * xp.tanh(scores / op.soft_cap)
    if op.causal:
        # Without a window only the last `tokens` keys can lie in any query's future.
        seen = 0 if op.window is not None else place - begin
        queries = xp.arange(place, place + tokens, device=query.device)[:, None]
        keys = xp.arange(begin + seen, end, device=query.device)[None, :]
        hidden = keys > queries
        if op.window is not None:
            hidden = hidden | (keys <= queries - op.window)
        scores[..., seen:] -= xp.astype(hidden, scores.dtype) * 1e30
    scores -= xp.max(scores, axis=-1, keepdims=True)
    weight = xp.exp(scores)
    total = xp.sum(weight, axis=-1, keepdims=True)
    mixed = xp.matmul(xp.reshape(weight, (batch, kept, group * tokens, end - begin)), value)
    return xp.reshape(mixed, (batch, kept, group, tokens, dim)) / total


def _erf(x: Array) -> Array:
    """Error function, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26)."""
    xp = array_namespace(x)
    t = 1.0 / (1.0 + 0.3275911 * xp.abs(x))
    polynomial = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    polynomial = t * (0.254829592 + t * (-0.284496736 + polynomial))
    return xp.sign(x) * (1.0 - polynomial * xp.exp(-x * x))


def _silu(x: Array) -> Array:
    xp = array_namespace(x)
    return x / (1.0 + xp.exp(-xp.clip(x, min=-80.0)))  # no overflow; silu(-80) is 0 in f32


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + _erf(x * 0.7071067811865476))


def _gelu_tanh(x: Array) -> Array:
    xp = array_namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def _relu(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
}


def _activation(op: Activation, buffers: dict[str, Array], _: Context) -> None:
    buffers[op.output] = ACTIVATIONS[op.function](buffers[op.input])


def _multiply(op: Multiply, buffers: dict[str, Array], _: Context) -> None:
    buffers[op.output] = buffers[op.left] * buffers[op.right]


def _add(op: Add, buffers: dict[str, Array], _: Context) -> None:
    buffers[op.output] = buffers[op.left] + buffers[op.right]


EXECUTE: dict[type[Operation], Execute] = {
    Embed: _embed,
    Norm: _norm,
    Linear: _linear,
    Split: _split,
    Rotary: _rotary,
    Attention: _attention,
    Activation: _activation,
    Multiply: _multiply,
    Add: _add,
}
"""One row per kind of operation; a new kind joins by adding its row."""
