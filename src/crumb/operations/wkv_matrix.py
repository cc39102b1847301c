"""Recurrences of RWKV-6 and 7: a matrix for each head, each of whose features fades as it is told.

In: queries, keys and paces (batch, tokens, heads * key_dim), values (batch, tokens, heads *
value_dim), for RWKV-7 shares as keys. Out: (batch, tokens, heads * value_dim), of RWKV-7 two.
RWKV-6: a query reads the state S, and of its own token (sum of u query key) value; then S fades by
e^(-e^(pace + w)) and takes in key times value. RWKV-7: S fades by e^(-e^-.5 sigmoid(pace)), loses
a n times what it says of n, takes in key times value, and is read; what is read of the token itself
goes apart. a = sigmoid(share), n = key * w over its length, and key is times 1 + (a - 1) c.
Sources: arXiv 2404.05892, section 4.2; arXiv 2503.14456, section 4; BlinkDL/RWKV-LM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.operations.matrix_states import SPAN, begin_matrix, read_state, sigmoid
from crumb.operations.operation import Array, Gradients, padded_row

if TYPE_CHECKING:
    from crumb.operations.recurrence import Recurrence, State

LARGEST_PACE = math.exp(-0.5)
"""RWKV-7's features fade by e^-.607 at most."""

SHORTEST = 1e-12
"""Length of a key that is no direction."""

FASTEST = 80.0
"""RWKV-6's largest pace: e^-e^80 is 0."""


@dataclass(frozen=True)
class Meeting:
    """What a state meets: (batch, tokens, heads, features)."""

    query: Array
    key: Array  # as it is taken in
    value: Array
    fade: Array
    seen: Array | None  # n: what is asked before anything is taken in; None: RWKV-6
    taken: Array | None  # a n: what is taken out, times the answer
    own: Array  # (..., 1): how much of its value a token reads of itself


def weights_of_heads(weights: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    """Weights as the native engine reads them, a padded row each."""
    rows = np.zeros((len(weights), padded_row(weights[0].size)), np.float32)
    for row, each in zip(rows, weights, strict=True):
        row[: each.size] = each.reshape(-1)
    return rows


def _heads(op: Recurrence, x: Array) -> Array:
    """By heads: (..., heads, features)."""
    return array_namespace(x).reshape(x, (*x.shape[:-1], op.heads, -1))


def _total(x: Array) -> Array:
    return array_namespace(x).sum(x, axis=-1, keepdims=True)


def _direction(raw: Array) -> tuple[Array, Array]:
    """Over its length, and that."""
    xp = array_namespace(raw)
    square = xp.clip(_total(raw * raw), min=SHORTEST * SHORTEST)
    length = xp.sqrt(square)
    return raw / length, length


def _speed(op: Recurrence, pace: Array, decay: Array) -> Array:
    """Of RWKV-6: how fast features fade."""
    xp = array_namespace(pace)
    return xp.exp(xp.clip(pace + xp.reshape(decay, (op.heads, op.key_dim)), max=FASTEST))


def _meeting(op: Recurrence, reads: tuple[Array, ...], weights: tuple[Array, ...]) -> Meeting:
    query, key, value, pace, *share = (_heads(op, each) for each in reads)
    xp = array_namespace(query)
    bonus = xp.reshape(weights[-1], (op.heads, op.key_dim))
    if not share:
        own = _total(query * bonus * key)
        fade = xp.exp(-_speed(op, pace, weights[0]))
        return Meeting(query, key, value, fade, None, None, own)
    toward, renewed = (_heads(op, each) for each in weights[:2])
    a = sigmoid(share[0])
    seen, _ = _direction(key * toward)
    key = key * (1.0 + (a - 1.0) * renewed)
    fade = xp.exp(-LARGEST_PACE * sigmoid(pace))
    return Meeting(query, key, value, fade, seen, seen * a, _total(query * bonus * key))


def _next(x: Meeting, token: int, state: Array) -> Array:
    """The state behind a token."""
    new = x.key[:, token, ..., None] * x.value[:, token, :, None, :]
    faded = x.fade[:, token, ..., None] * state
    if x.seen is None or x.taken is None:
        return faded + new
    says = read_state(state, x.seen[:, token, ...])
    return faded - x.taken[:, token, ..., None] * says[..., None, :] + new


def chunk_wkv_matrix(
    op: Recurrence, reads: tuple[Array, ...], state: State, weights: tuple[Array, ...]
) -> tuple[tuple[Array, ...], State]:
    """Token by token: what is read of the state, and of RWKV-7 of each token; the next state."""
    x = _meeting(op, reads, weights)
    xp = array_namespace(x.query)
    matrix, rows = state[0], []
    for token in range(x.query.shape[1]):
        after = _next(x, token, matrix)
        rows.append(read_state(matrix if x.seen is None else after, x.query[:, token, ...]))
        matrix = after
    y, own = xp.stack(rows, axis=1), x.own * x.value
    outputs = (y + own,) if x.seen is None else (y, own)
    return tuple(xp.reshape(each, reads[2].shape) for each in outputs), (matrix,)


def gradient_wkv_matrix(
    op: Recurrence, reads: tuple[Array, ...], output: Gradients, weights: tuple[Array, ...]
) -> tuple[Gradients, Gradients]:
    """Of whole texts, token by token backwards; states are made again, SPAN tokens at a time."""
    x = _meeting(op, reads, weights)
    xp = array_namespace(x.query)
    toward, own = (
        xp.zeros_like(x.value) if each is None else _heads(op, each)
        for each in (output if x.seen is not None else output * 2)
    )
    parts = vars(x).items()
    to = Meeting(**{name: None if each is None else xp.zeros_like(each) for name, each in parts})
    to_state = begin_matrix(op, reads[0])[0]
    for token, before in _states_back(op, reads, x):
        to_state = _back(x, to, token, before, to_state, toward[:, token, ...])
    to.own[...] = _total(own * x.value)
    to.value[...] = to.value + x.own * own
    return _of_inputs(op, reads, weights, x, to)


def _states_back(
    op: Recurrence, reads: tuple[Array, ...], x: Meeting
) -> Iterator[tuple[int, Array]]:
    """Each token and the state before it, the last token first."""
    tokens, (state,) = x.query.shape[1], begin_matrix(op, reads[0])
    starts = []
    for token in range(tokens):
        if token % SPAN == 0:
            starts.append(state)
        state = _next(x, token, state)
    for index in reversed(range(len(starts))):
        before = [starts[index]]
        for token in range(index * SPAN, min(index * SPAN + SPAN, tokens) - 1):
            before.append(_next(x, token, before[-1]))
        for place in reversed(range(len(before))):
            yield index * SPAN + place, before[place]


def _back(
    x: Meeting, to: Meeting, token: int, before: Array, to_state: Array, toward: Array
) -> Array:
    """One token's gradients into `to`; out: that of the state before it."""
    xp = array_namespace(before)
    query, wide = x.query[:, token, ...], toward[..., None, :]
    is_read_after = x.seen is not None
    of_read = _next(x, token, before) if is_read_after else before
    to.query[:, token, ...] = xp.sum(of_read * wide, axis=-1)
    if is_read_after:
        to_state = to_state + query[..., None] * wide
    to.fade[:, token, ...] = xp.sum(to_state * before, axis=-1)
    to.key[:, token, ...] = xp.sum(to_state * x.value[:, token, :, None, :], axis=-1)
    to.value[:, token, ...] = read_state(to_state, x.key[:, token, ...])
    to_before = x.fade[:, token, ..., None] * to_state
    if x.seen is None or x.taken is None or to.seen is None or to.taken is None:
        return to_before + query[..., None] * wide
    seen = x.seen[:, token, ...]
    says = read_state(before, seen)
    to.taken[:, token, ...] = -xp.sum(to_state * says[..., None, :], axis=-1)
    to_says = -read_state(to_state, x.taken[:, token, ...])
    to.seen[:, token, ...] = xp.sum(before * to_says[..., None, :], axis=-1)
    return to_before + seen[..., None] * to_says[..., None, :]


def _of_inputs(
    op: Recurrence, reads: tuple[Array, ...], weights: tuple[Array, ...], x: Meeting, to: Meeting
) -> tuple[Gradients, Gradients]:
    """Gradients of what the rule read, of those of what the state met."""
    xp = array_namespace(x.query)
    bonus = xp.reshape(weights[-1], (op.heads, op.key_dim))
    to_query = to.query + to.own * bonus * x.key
    to_key = to.key + to.own * bonus * x.query
    to_bonus = xp.sum(to.own * x.query * x.key, axis=(0, 1))
    pace = _heads(op, reads[3])

    def flat(*inputs: Array) -> Gradients:
        return tuple(xp.reshape(each, (*each.shape[:2], -1)) for each in inputs)

    if x.seen is None or to.seen is None or to.taken is None:
        to_pace = -to.fade * x.fade * _speed(op, pace, weights[0])
        to_decay = xp.reshape(xp.sum(to_pace, axis=(0, 1)), weights[0].shape)
        return flat(to_query, to_key, to.value, to_pace), (to_decay, to_bonus)
    raw_key, a = _heads(op, reads[1]), sigmoid(_heads(op, reads[4]))
    wide, renewed = (_heads(op, each) for each in weights[:2])
    seen, length = _direction(raw_key * wide)
    to_seen = to.seen + to.taken * a
    to_raw = (to_seen - seen * _total(seen * to_seen)) / length
    to_a = to.taken * seen + to_key * raw_key * renewed
    slope = sigmoid(pace)
    to_pace = -LARGEST_PACE * to.fade * x.fade * slope * (1.0 - slope)
    inputs = flat(
        to_query,
        to_raw * wide + to_key * (1.0 + (a - 1.0) * renewed),
        to.value,
        to_pace,
        to_a * a * (1.0 - a),
    )
    to_wide, to_renewed = (
        xp.reshape(xp.sum(each, axis=(0, 1)), weights[0].shape)
        for each in (to_raw * raw_key, to_key * raw_key * (a - 1.0))
    )
    return inputs, (to_wide, to_renewed, to_bonus)
