"""The recurrence of RWKV-4: a mean of values, each weighted by its key and by its age.

In: keys and values (batch, tokens, heads), a head being one feature; the decay of each as files
hold it, ln(-w), and the bonus u of the newest token. Out: (batch, tokens, heads). With
A = sum of e^(age w + k) v and B the same without v, a token reads (A + e^(u + k) v) /
(B + e^(u + k)). A state holds A and B over e^p, and p. Source: arXiv 2305.13048, eqs. 16 to 18.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.operations.operation import Array, Gradients, padded_row

if TYPE_CHECKING:
    from crumb.operations.recurrence import Recurrence, State

NOTHING = -1e38
"""p before the first token: what it scales is nothing beside anything."""


def wkv_floats(heads: int) -> int:
    """Floats of a state: A, B and p."""
    return 3 * padded_row(heads)


def begin_wkv(op: Recurrence, like: Array) -> State:
    """The state of texts that begin."""
    xp = array_namespace(like)
    shape, kind = (like.shape[0], op.heads), {"dtype": like.dtype, "device": like.device}
    return xp.zeros(shape, **kind), xp.zeros(shape, **kind), xp.full(shape, NOTHING, **kind)


def decays_of_wkv(weights: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
    """Decay and bonus as the native engine reads them: w and u, a padded row each."""
    decay, bonus = weights
    rows = np.zeros((2, padded_row(decay.size)), np.float32)
    rows[0, : decay.size], rows[1, : bonus.size] = -np.exp(decay.astype(np.float64)), bonus
    return rows


def chunk_wkv(
    op: Recurrence, reads: tuple[Array, ...], state: State, weights: tuple[Array, ...]
) -> tuple[tuple[Array, ...], State]:
    """Shapes: two of (batch, tokens, heads) -> one, and the next state."""
    del op
    key, value = reads
    xp = array_namespace(key)
    w, u = -xp.exp(weights[0]), weights[1]
    total, share, peak = state
    rows = []
    for token in range(key.shape[1]):
        k, v = key[:, token, :], value[:, token, :]
        past, new = _shares(peak, k + u)
        rows.append((past * total + new * v) / (past * share + new))
        past, new = _shares(peak + w, k)
        total, share = past * total + new * v, past * share + new
        peak = xp.maximum(peak + w, k)
    return (xp.stack(rows, axis=1),), (total, share, peak)


def _shares(past: Array, new: Array) -> tuple[Array, Array]:
    """e^past and e^new over the larger of both."""
    xp = array_namespace(past)
    most = xp.maximum(past, new)
    return xp.exp(past - most), xp.exp(new - most)


def gradient_wkv(
    op: Recurrence, reads: tuple[Array, ...], output: Gradients, weights: tuple[Array, ...]
) -> tuple[Gradients, Gradients]:
    """Of whole texts, token by token backwards.

    With d the denominator of a token and g its gradient: dA = g / d, dB = -g y / d, and both decay
    from token to token as A and B do, so that they too are held over e^r.
    """
    key, value = reads
    toward: Array = output[0]
    xp = array_namespace(key)
    w, u = -xp.exp(weights[0]), weights[1]
    states = _states(op, reads, weights)
    to_key, to_value = xp.zeros_like(key), xp.zeros_like(value)
    to_w, to_u = xp.zeros_like(w), xp.zeros_like(u)
    to_total, to_share, r = begin_wkv(op, key)
    for token in reversed(range(key.shape[1])):
        k, v, g = key[:, token, :], value[:, token, :], toward[:, token, :]
        total, share, peak = states[token]
        # What the token leaves in the state, and what the state was: e^(k + r), e^(p + w + r).
        left, before = xp.exp(k + r), xp.exp(peak + w + r)
        to_value[:, token, :] += left * to_total
        to_key[:, token, :] += left * (v * to_total + to_share)
        to_w = to_w + xp.sum(before * (total * to_total + share * to_share), axis=0)
        past, new = _shares(peak, k + u)
        most = xp.maximum(peak, k + u)
        under = past * share + new
        y = (past * total + new * v) / under
        of_new = g * new / under
        to_value[:, token, :] += of_new
        to_key[:, token, :] += of_new * (v - y)
        to_u = to_u + xp.sum(of_new * (v - y), axis=0)
        older, here = _shares(r + w, -most)
        to_total = older * to_total + here * g / under
        to_share = older * to_share - here * g * y / under
        r = xp.maximum(r + w, -most)
    return (to_key, to_value), (to_w * w, to_u)


def _states(op: Recurrence, reads: tuple[Array, ...], weights: tuple[Array, ...]) -> list[State]:
    """The state before each token."""
    states = [begin_wkv(op, reads[0])]
    for token in range(reads[0].shape[1] - 1):
        one = tuple(each[:, token : token + 1, :] for each in reads)
        states.append(chunk_wkv(op, one, states[-1], weights)[1])
    return states
