"""Attention: values mixed by how well keys match queries.

In: f32 queries (batch, tokens, heads * head_dim), keys and values (batch, tokens, key_value_heads *
head_dim). Out: f32 as the queries. Scores of QUERY_BLOCK queries are held at once.
Source: arXiv 1706.03762, section 3.2; fewer key-value heads: arXiv 2305.13245.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    NativeProgram,
    Needs,
    Operation,
    OperationCost,
    Row,
    TensorSpec,
)
from crumb.operations.places import Buckets, Slopes, Temperature

QUERY_BLOCK = 128
"""Queries whose scores are held at once."""


@dataclass(frozen=True)
class Attention(Operation):
    """softmax(scale q k^T + mask) v for each head; key and value heads may be fewer.

    With a state slot, earlier keys and values are prepended; window counts the query itself, and
    in chunks a query sees those of its own: the text is cut at multiples of `chunk`.
    A soft cap c turns each score s into c tanh(s / c). A sink is the score of a key whose value is
    0. Without a value, the first value_dim features of the keys are mixed: latent attention.
    """

    READS = ("query", "key", "value")

    query: str  # (batch, tokens, heads * head_dim)
    key: str  # (batch, tokens, key_value_heads * head_dim)
    value: str | None  # (batch, tokens, key_value_heads * value_dim)
    output: str  # (batch, tokens, heads * value_dim)
    heads: int
    key_value_heads: int
    head_dim: int
    scale: float
    causal: bool
    window: int | None  # tokens
    state: str | None
    soft_cap: float | None = None
    value_dim: int | None = None  # None: head_dim
    sinks: str | None = None  # (heads,)
    slopes: Slopes | None = None  # added behind the soft cap
    buckets: Buckets | None = None
    bias: str | None = None  # (buckets, heads), added behind the soft cap
    temperature: Temperature | None = None  # of queries
    chunk: int | None = None  # tokens

    @property
    def mixed_dim(self) -> int:
        """Features of a value."""
        return self.head_dim if self.value_dim is None else self.value_dim

    def tensors(self) -> tuple[TensorSpec, ...]:
        specs = [] if self.sinks is None else [TensorSpec(self.sinks, (self.heads,), matrix=False)]
        if self.bias is not None and self.buckets is not None:
            specs.append(TensorSpec(self.bias, (self.buckets.count, self.heads), matrix=False))
        return tuple(specs)


def _heads(op: Attention, array: Array) -> Array:
    """Keys or values as (batch, key_value_heads, tokens, features)."""
    xp = array_namespace(array)
    batch, tokens = array.shape[:2]
    apart = xp.reshape(array, (batch, tokens, op.key_value_heads, -1))
    return xp.permute_dims(apart, (0, 2, 1, 3))


def _grouped(op: Attention, array: Array) -> Array:
    """Queries or outputs as (batch, key_value_heads, group, tokens, features)."""
    xp = array_namespace(array)
    group = op.heads // op.key_value_heads
    apart = (array.shape[0], array.shape[1], op.key_value_heads, group, -1)
    return xp.permute_dims(xp.reshape(array, apart), (0, 2, 3, 1, 4))


def _joined(op: Attention, array: Array) -> Array:
    """What `_grouped` took apart."""
    xp = array_namespace(array)
    batch, tokens = array.shape[0], array.shape[3]
    turned = xp.permute_dims(array, (0, 3, 1, 2, 4))
    return xp.reshape(turned, (batch, tokens, op.heads * array.shape[4]))


def _reference(op: Attention, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    xp = array_namespace(reads[0])
    query = _grouped(op, reads[0])
    parts = tuple(_heads(op, each) for each in reads[1:])  # latent: keys alone
    if context.states is not None and op.state is not None:
        if op.state in context.states:
            both = zip(context.states[op.state], parts, strict=True)
            parts = tuple(xp.concat([past, part], axis=2) for past, part in both)
        context.states[op.state] = parts
    key, value = parts[0], parts[-1][..., : op.mixed_dim]
    tokens = query.shape[3]
    first = key.shape[2] - tokens if op.causal else 0
    query = query * _scales(op, query, first)
    blocks = []
    for begin in range(0, tokens, QUERY_BLOCK):
        block = query[:, :, :, begin : min(begin + QUERY_BLOCK, tokens), :]
        low, high = _seen(op, first + begin, block.shape[3], key.shape[2])
        weight, total, _ = _weights(op, block, key[:, :, low:high, :], first + begin, low, context)
        mixed = context.multiply(_flat(weight), value[:, :, low:high, :])
        blocks.append(xp.reshape(mixed, (*block.shape[:4], op.mixed_dim)) / total)
    return (_joined(op, xp.concat(blocks, axis=3)),)


def _seen(op: Attention, place: int, tokens: int, keys: int) -> tuple[int, int]:
    """Keys that any of some queries sees, the first of which sits at `place` among the keys."""
    low = 0 if op.window is None else max(0, place - op.window + 1)
    if op.chunk is not None:
        low = max(low, place - place % op.chunk)
    return low, place + tokens if op.causal else keys


def _scales(op: Attention, query: Array, first: int) -> Array:
    """What queries are multiplied with, the first of them at place `first`: a number, or one for
    each token, (tokens, 1).
    """
    if op.temperature is None:
        return op.scale
    factors = op.temperature.factors(np.arange(first, first + query.shape[3]))
    xp = array_namespace(query)
    return xp.asarray(np.float32(op.scale) * factors[:, None], device=query.device)


def _flat(weight: Array) -> Array:
    """(batch, heads, group, tokens, keys) with the queries of a group behind each other."""
    batch, heads, group, tokens, keys = weight.shape
    return array_namespace(weight).reshape(weight, (batch, heads, group * tokens, keys))


def _weights(
    op: Attention, query: Array, key: Array, place: int, low: int, context: Context
) -> tuple[Array, Array, Array]:
    """Softmax of a block of queries: its numerators, their sums, and the capped scores' slope.

    `place` is that of the first query in its text, `low` that of the first key.
    Shapes: query (batch, heads, group, tokens, dim), key (batch, heads, keys, dim) ->
    (batch, heads, group, tokens, keys), (..., 1), as the first or 1.
    """
    xp = array_namespace(query)
    batch, heads, group, tokens, dim = query.shape
    flat = xp.reshape(query, (batch, heads, group * tokens, dim))
    scores = context.multiply(flat, xp.matrix_transpose(key))
    scores = xp.reshape(scores, (batch, heads, group, tokens, key.shape[2]))
    slope: Array = 1.0
    if op.soft_cap is not None:
        squeezed = xp.tanh(scores / op.soft_cap)
        scores, slope = op.soft_cap * squeezed, 1.0 - squeezed * squeezed
    if op.slopes is not None:
        places = np.arange(place, place + tokens), np.arange(low, low + key.shape[2])
        added = xp.asarray(op.slopes.added(op.heads, *places), device=query.device)
        scores = scores + xp.reshape(added, (1, heads, group, tokens, key.shape[2]))
    if op.bias is not None:
        table = xp.take(context.weights[op.bias], _buckets(op, scores, place, low), axis=0)
        added = xp.permute_dims(xp.reshape(table, (tokens, -1, op.heads)), (2, 0, 1))
        scores = scores + xp.reshape(added, (1, heads, group, tokens, key.shape[2]))
    if op.causal:
        _hide(op, scores, place, low)
    most = xp.max(scores, axis=-1, keepdims=True)
    if op.sinks is None:
        weight = xp.exp(scores - most)
        return weight, xp.sum(weight, axis=-1, keepdims=True), slope
    sink = xp.reshape(context.weights[op.sinks], (1, heads, group, 1, 1))
    most = xp.maximum(most, sink)
    weight = xp.exp(scores - most)
    return weight, xp.sum(weight, axis=-1, keepdims=True) + xp.exp(sink - most), slope


def _buckets(op: Attention, scores: Array, place: int, low: int) -> Array:
    """Of each query and key behind each other, (tokens * keys,)."""
    assert op.buckets is not None, "a bias has buckets"
    tokens, keys = scores.shape[-2:]
    apart = np.arange(low, low + keys)[None, :] - np.arange(place, place + tokens)[:, None]
    numbered = op.buckets.numbered(apart).reshape(-1)
    return array_namespace(scores).asarray(numbered, device=scores.device)


def _to_bias(op: Attention, scores: Array, place: int, low: int) -> Array:
    """The gradient of a table of buckets, of that of the scores: (buckets, heads)."""
    assert op.buckets is not None, "a bias has buckets"
    xp = array_namespace(scores)
    batch = scores.shape[0]
    numbered = _buckets(op, scores, place, low)[None, :]
    one_hot = numbered == xp.arange(op.buckets.count, device=scores.device)[:, None]
    by_pair = xp.sum(xp.reshape(scores, (batch, op.heads, -1)), axis=0)
    return xp.matmul(xp.astype(one_hot, scores.dtype), xp.matrix_transpose(by_pair))


def _hide(op: Attention, scores: Array, place: int, low: int) -> None:
    """Take what a query does not see out of its scores, in place."""
    xp = array_namespace(scores)
    tokens, keys = scores.shape[-2:]
    # Where nothing is cut off, only the last `tokens` keys can lie in any query's future.
    seen = place if op.window is None and op.chunk is None else low
    query = xp.arange(place, place + tokens, device=scores.device)[:, None]
    key = xp.arange(seen, low + keys, device=scores.device)[None, :]
    hidden = key > query
    if op.window is not None:
        hidden = hidden | (key <= query - op.window)
    if op.chunk is not None:
        hidden = hidden | (key < query - query % op.chunk)
    scores[..., seen - low :] -= xp.astype(hidden, scores.dtype) * 1e30


def _gradient(
    op: Attention, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    """Of whole texts: with P the softmax, dS = P (dP - sum(P dP)), dP = dO v^T."""
    xp = array_namespace(reads[0])
    query = _grouped(op, reads[0])
    parts = tuple(_heads(op, each) for each in reads[1:])
    key, value = parts[0], parts[-1][..., : op.mixed_dim]
    gradient = _grouped(op, output[0])
    to_key, to_value = xp.zeros_like(key), xp.zeros_like(value)
    to_sinks, to_bias = 0.0, 0.0
    first = key.shape[2] - query.shape[3] if op.causal else 0
    scales = _scales(op, query, first)
    query = query * scales
    blocks = []
    for begin in range(0, query.shape[3], QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, query.shape[3])
        block = query[:, :, :, begin:end, :]
        low, high = _seen(op, first + begin, block.shape[3], key.shape[2])
        keys, values = key[:, :, low:high, :], value[:, :, low:high, :]
        weight, total, slope = _weights(op, block, keys, first + begin, low, context)
        weight = weight / total
        flat_out = _flat(gradient[:, :, :, begin:end, :])
        to_weight = xp.reshape(
            context.multiply(flat_out, xp.matrix_transpose(values)), weight.shape
        )
        to_value[:, :, low:high, :] += context.multiply(
            xp.matrix_transpose(_flat(weight)), flat_out
        )
        along = xp.sum(weight * to_weight, axis=-1, keepdims=True)
        # The sink's weight is what the others leave; its value is 0, so that dP is too.
        left = 1.0 - xp.sum(weight, axis=-1, keepdims=True)
        to_sinks = to_sinks - xp.sum(left * along, axis=(0, 3, 4))
        to_scores = weight * (to_weight - along)
        if op.bias is not None and op.bias in context.trained:
            to_bias = to_bias + _to_bias(op, to_scores, first + begin, low)
        scores = _flat(to_scores * slope)
        to_key[:, :, low:high, :] += context.multiply(xp.matrix_transpose(scores), _flat(block))
        blocks.append(xp.reshape(context.multiply(scores, keys), block.shape))
    to_query = _joined(op, xp.concat(blocks, axis=3) * scales)
    if op.value is None:
        to_key[..., : op.mixed_dim] += to_value
    both = (xp.permute_dims(each, (0, 2, 1, 3)) for each in (to_key, to_value)[: len(parts)])
    shaped = (xp.reshape(each, read.shape) for each, read in zip(both, reads[1:], strict=True))
    trained = {}
    if op.sinks is not None and op.sinks in context.trained:
        trained[op.sinks] = xp.reshape(to_sinks, (-1,))
    if op.bias is not None and op.bias in context.trained:
        trained[op.bias] = to_bias
    return (to_query, *shaped), trained


def _native(op: Attention, program: NativeProgram) -> None:
    slopes, heat, cache = op.slopes, op.temperature, program.cache(op)
    key, value = (
        -1 if name is None or cache["memory"] else program.buffer(name)
        for name in (op.key, op.value)
    )
    program.add(
        "attention",
        query=program.buffer(op.query),
        key=key,
        value=value,
        out=program.buffer(op.output),
        heads=op.heads,
        key_value_heads=op.key_value_heads,
        scale=op.scale,
        soft_cap=op.soft_cap or 0.0,
        causal=op.causal,
        window=op.window or 0,
        sinks=program.vector(op.sinks),
        slopes=None if slopes is None else slopes.slopes(op.heads),
        slope_factor=1.0 if slopes is None else slopes.factor,
        rounded=slopes is not None and slopes.rounded,
        rate=0.0 if heat is None else heat.rate,
        span=1.0 if heat is None else heat.span,
        first=0 if heat is None else heat.first,
        chunk=op.chunk or 0,
        distances=_distances(op, program),
        farthest=0 if op.buckets is None else op.buckets.farthest,
        **cache,
    )


def _distances(op: Attention, program: NativeProgram) -> NDArray[np.float32] | None:
    """What distances add to scores, a row for each head."""
    table = program.vector(op.bias)
    return None if table is None or op.buckets is None else op.buckets.spread(table)


def _cost(op: Attention, past_tokens: float) -> OperationCost:
    seen = min(past_tokens, op.window or past_tokens, op.chunk or past_tokens)
    return OperationCost(multiply_adds=seen * op.heads * (op.head_dim + op.mixed_dim))


def _needs(op: Attention) -> Needs:
    value_dim = 0 if op.value is None else op.value_dim
    return Needs(cache_heads=op.key_value_heads, head_dim=op.head_dim, value_dim=value_dim)


ROW = Row(
    Attention,
    lambda op, widths: (op.heads * op.mixed_dim,),
    _reference,
    _gradient,
    _native,
    _cost,
    _needs,
)
