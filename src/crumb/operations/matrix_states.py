"""Recurrences whose state is a matrix for each head: the gated delta rule, and Mamba-2's scan.

In: queries and keys (batch, tokens, key_heads * key_dim), values (batch, tokens, heads *
value_dim), steps (batch, tokens, heads), for the delta rule shares as the steps; key heads are
shared by neighbouring heads. Out: (batch, tokens, heads * value_dim). A step d = softplus(step +
bias) makes the state fade by e^(-e^rate d); then it takes in key times what is new: beta (v - what
it says of the key) with beta = sigmoid(share), or d v; the query reads it, and a scan adds skip v.
Sources: arXiv 2412.06464, eq. 10; arXiv 2405.21060, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.operations.operation import Array, Gradients, padded_row

if TYPE_CHECKING:
    from crumb.operations.recurrence import Recurrence, State

SPAN = 32
"""Tokens whose states the way back holds at once."""


def matrix_floats(op: Recurrence) -> int:
    """Floats of a state: for each head and feature of a key a row of values."""
    return op.heads * op.key_dim * padded_row(op.value_dim)


def begin_matrix(op: Recurrence, like: Array) -> State:
    """The state of texts that begin: (batch, heads, key_dim, value_dim)."""
    xp, shape = array_namespace(like), (like.shape[0], op.heads, op.key_dim, op.value_dim)
    return (xp.zeros(shape, dtype=like.dtype, device=like.device),)


def rows_of_heads(weights: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    """Rates, biases and skips as the native engine reads them, a padded row each."""
    rate, *others = weights
    rows = np.zeros((3, padded_row(rate.size)), np.float32)
    rows[0, : rate.size] = -np.exp(rate.astype(np.float64))
    for row, each in zip(rows[1:], others, strict=False):
        row[: each.size] = each
    return rows


def softplus(x: Array) -> Array:
    """ln(1 + e^x), without an overflow."""
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without an overflow."""
    xp = array_namespace(x)
    return 1.0 / (1.0 + xp.exp(-xp.clip(x, min=-80.0)))


@dataclass(frozen=True)
class Inputs:
    """What a rule reads, by heads: (batch, tokens, heads, features or nothing)."""

    query: Array
    key: Array
    value: Array
    step: Array  # d
    fade: Array  # e^(-e^rate d)
    share: Array | None  # beta


def _by_heads(op: Recurrence, reads: tuple[Array, ...], weights: tuple[Array, ...]) -> Inputs:
    query, key, value, step, *rest = reads
    xp = array_namespace(query)
    head = query.shape[:2]
    each = op.heads // op.key_heads

    def apart(x: Array) -> Array:
        return xp.repeat(xp.reshape(x, (*head, op.key_heads, op.key_dim)), each, axis=2)

    d = softplus(step + weights[1])
    return Inputs(
        apart(query),
        apart(key),
        xp.reshape(value, (*head, op.heads, op.value_dim)),
        d,
        xp.exp(-xp.exp(weights[0]) * d),
        sigmoid(rest[0]) if rest else None,
    )


def read_state(state: Array, key: Array) -> Array:
    """What a state says of keys: (batch, heads, value_dim)."""
    return array_namespace(state).sum(state * key[..., None], axis=-2)


def chunk_matrix(
    op: Recurrence, reads: tuple[Array, ...], state: State, weights: tuple[Array, ...]
) -> tuple[tuple[Array, ...], State]:
    """Token by token: the output and the next state."""
    x = _by_heads(op, reads, weights)
    xp = array_namespace(x.query)
    matrix, rows = state[0], []
    for token in range(x.query.shape[1]):
        matrix = x.fade[:, token, :, None, None] * matrix
        key, new = x.key[:, token, ...], _new(x, token, matrix)
        matrix = matrix + key[..., None] * new[..., None, :]
        rows.append(read_state(matrix, x.query[:, token, ...]))
    y = xp.stack(rows, axis=1)
    if x.share is None:
        y = y + weights[2][:, None] * x.value
    return (xp.reshape(y, (*y.shape[:2], op.heads * op.value_dim)),), (matrix,)


def _new(x: Inputs, token: int, faded: Array) -> Array:
    """What a token brings: (batch, heads, value_dim)."""
    value = x.value[:, token, ...]
    if x.share is None:
        return x.step[:, token, :, None] * value
    return x.share[:, token, :, None] * (value - read_state(faded, x.key[:, token, ...]))


def gradient_matrix(
    op: Recurrence, reads: tuple[Array, ...], output: Gradients, weights: tuple[Array, ...]
) -> tuple[Gradients, Gradients]:
    """Of whole texts, token by token backwards; states are made again, SPAN tokens at a time."""
    x = _by_heads(op, reads, weights)
    xp = array_namespace(x.query)
    tokens = x.query.shape[1]
    toward = xp.reshape(output[0], x.value.shape)
    to = Inputs(*(None if each is None else xp.zeros_like(each) for each in vars(x).values()))
    starts, state = [], begin_matrix(op, reads[0])
    for begin in range(0, tokens, SPAN):
        starts.append(state)
        part = tuple(each[:, begin : begin + SPAN, :] for each in reads)
        state = chunk_matrix(op, part, state, weights)[1]
    to_state = xp.zeros_like(state[0])
    for index in reversed(range(len(starts))):
        begin = index * SPAN
        before = [starts[index][0]]
        for token in range(begin, min(begin + SPAN, tokens) - 1):
            one = tuple(each[:, token : token + 1, :] for each in reads)
            before.append(chunk_matrix(op, one, (before[-1],), weights)[1][0])
        for token in reversed(range(begin, begin + len(before))):
            to_state = _back(x, to, token, before.pop(), to_state, toward[:, token, ...])
    return _of_inputs(op, x, to, toward, weights)


def _back(
    x: Inputs, to: Inputs, token: int, before: Array, to_state: Array, toward: Array
) -> Array:
    """One token's gradients into `to`; out: that of the state before it."""
    xp = array_namespace(before)
    fade = x.fade[:, token, :, None, None]
    query, key = x.query[:, token, ...], x.key[:, token, ...]
    faded = fade * before
    new = _new(x, token, faded)
    to.query[:, token, ...] = xp.sum(
        (faded + key[..., None] * new[..., None, :]) * toward[..., None, :], axis=-1
    )
    to_state = to_state + query[..., None] * toward[..., None, :]
    to_key = xp.sum(to_state * new[..., None, :], axis=-1)
    to_new = read_state(to_state, key)
    value = x.value[:, token, ...]
    if x.share is None:
        to.value[:, token, ...] = x.step[:, token, :, None] * to_new
        to.step[:, token, :] = xp.sum(to_new * value, axis=-1)
    else:
        share = x.share[:, token, :, None]
        to.value[:, token, ...] = share * to_new
        assert to.share is not None, "as the inputs"
        to.share[:, token, :] = xp.sum(to_new * (value - read_state(faded, key)), axis=-1)
        to_key = to_key - xp.sum(faded * (share * to_new)[..., None, :], axis=-1)
        to_state = to_state - key[..., None] * (share * to_new)[..., None, :]
    to.key[:, token, ...] = to_key
    to.fade[:, token, :] = xp.sum(to_state * before, axis=(-2, -1))
    return fade * to_state


def _of_inputs(
    op: Recurrence, x: Inputs, to: Inputs, toward: Array, weights: tuple[Array, ...]
) -> tuple[Gradients, Gradients]:
    """Gradients of what the rule read, of those by heads."""
    xp = array_namespace(x.query)
    head = x.query.shape[:2]
    to_value, to_skip = to.value, list[Array]()
    if x.share is None:
        to_skip.append(xp.sum(toward * x.value, axis=(0, 1, 3)))
        to_value = to_value + weights[2][:, None] * toward

    def together(each: Array) -> Array:
        shape = (*head, op.key_heads, op.heads // op.key_heads, op.key_dim)
        return xp.reshape(xp.sum(xp.reshape(each, shape), axis=3), (*head, -1))

    pace = -xp.exp(weights[0])
    of_pace = to.fade * x.fade
    to_step = to.step + of_pace * pace
    to_rate = xp.sum(of_pace * x.step * pace, axis=(0, 1))
    to_raw = to_step * (1.0 - xp.exp(-x.step))  # the slope of softplus
    inputs = [together(to.query), together(to.key), xp.reshape(to_value, (*head, -1)), to_raw]
    if x.share is not None:
        assert to.share is not None, "as the inputs"
        inputs.append(to.share * x.share * (1.0 - x.share))
    return tuple(inputs), (to_rate, xp.sum(to_raw, axis=(0, 1)), *to_skip)
