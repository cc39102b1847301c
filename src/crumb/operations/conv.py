"""Conv: a short causal convolution of each feature by itself.

In: f32 (batch, tokens, features). Out: the same shape. The rows before a text are 0; with a state
slot they are the last ones of the call before. Token shifts of RWKV are two taps that add up to 1.
Sources: causal-conv1d's definition; RWKV, arXiv 2305.13048, eqs. 11 to 13.
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
    padded_row,
    same_width,
)

FORMS = ("taps", "mix", "lerp", "change")
"""How files hold two taps or more: each of them, the newest row's share, the other's, or not."""


@dataclass(frozen=True)
class Conv(Operation):
    """output[t] = bias + sum over j of tap[j] * input[t - taps + 1 + j], feature by feature.

    Form "taps": the weight holds them. "mix": taps (1 - weight, weight). "lerp": the reverse.
    "change": (1, -1), without a weight.
    """

    input: str  # (batch, tokens, features)
    output: str
    weight: str | None  # (features, 1, taps); of a mix or lerp (1, 1, features)
    bias: str | None  # (features,)
    features: int
    taps: int
    form: str  # of FORMS
    state: str | None  # slot of the last taps - 1 rows
    flat: bool = False  # the weight of a mix or lerp lies as (features,)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        if self.form == "taps":
            return (self.features, 1, self.taps)
        return (self.features,) if self.flat else (1, 1, self.features)

    def tensors(self) -> tuple[TensorSpec, ...]:
        named = ((self.weight, self.weight_shape), (self.bias, (self.features,)))
        return tuple(
            TensorSpec(name, shape, matrix=False) for name, shape in named if name is not None
        )


def _taps(op: Conv, weight: Array | None, like: Array) -> Array:
    """The taps of each feature, the oldest row's first: (taps, features)."""
    xp = array_namespace(like)
    if weight is None:
        one = xp.ones((1, op.features), dtype=like.dtype, device=like.device)
        return xp.concat([one, -one], axis=0)
    if op.form == "taps":
        return xp.permute_dims(xp.reshape(weight, (op.features, op.taps)), (1, 0))
    mix = xp.reshape(weight, (1, op.features))
    parts = [1.0 - mix, mix] if op.form == "mix" else [mix, 1.0 - mix]
    return xp.concat(parts, axis=0)


def _to_weight(op: Conv, taps: Array) -> Array:
    """The gradient of the weight, of that of the taps."""
    xp = array_namespace(taps)
    if op.form == "taps":
        return xp.reshape(xp.permute_dims(taps, (1, 0)), op.weight_shape)
    change = taps[1, :] - taps[0, :]
    return xp.reshape(change if op.form == "mix" else -change, op.weight_shape)


def _weight(op: Conv, context: Context) -> Array | None:
    return None if op.weight is None else context.weights[op.weight]


def _with_past(op: Conv, x: Array, context: Context) -> Array:
    """The rows before, then these: (batch, taps - 1 + tokens, features)."""
    xp = array_namespace(x)
    states, slot = context.states, op.state
    if states is not None and slot is not None and slot in states:
        (past,) = states[slot]
    else:
        past = xp.zeros((x.shape[0], op.taps - 1, op.features), dtype=x.dtype, device=x.device)
    whole = xp.concat([past, x], axis=1)
    if states is not None and slot is not None:
        states[slot] = (whole[:, x.shape[1] :, :],)
    return whole


def _reference(op: Conv, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    (x,) = reads
    taps, whole = _taps(op, _weight(op, context), x), _with_past(op, x, context)
    y = taps[0, :] * whole[:, : x.shape[1], :]
    for tap in range(1, op.taps):
        y = y + taps[tap, :] * whole[:, tap : tap + x.shape[1], :]
    return (y if op.bias is None else y + context.weights[op.bias],)


def _gradient(
    op: Conv, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    (x,), (gradient,), xp = reads, output, array_namespace(reads[0])
    tokens, taps = x.shape[1], _taps(op, _weight(op, context), x)
    whole = _with_past(op, x, Context(context.weights))
    to_whole = xp.zeros_like(whole)
    to_taps = []
    for tap in range(op.taps):
        rows = slice(tap, tap + tokens)
        to_whole[:, rows, :] += taps[tap, :] * gradient
        to_taps.append(xp.sum(gradient * whole[:, rows, :], axis=(0, 1)))
    trained = {}
    if op.weight is not None and op.weight in context.trained:
        trained[op.weight] = _to_weight(op, xp.stack(to_taps))
    if op.bias is not None and op.bias in context.trained:
        trained[op.bias] = xp.sum(gradient, axis=(0, 1))
    return (to_whole[:, op.taps - 1 :, :],), trained


def rows_of(*vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of features as rows that the native engine reads whole: (vectors, padded)."""
    rows = np.zeros((len(vectors), padded_row(vectors[0].size)), np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        row[: vector.size] = vector
    return rows


def _native(op: Conv, program: NativeProgram) -> None:
    bias, none = program.vector(op.bias), np.zeros(0, np.float32)
    program.add(
        "conv",
        input=program.buffer(op.input),
        out=program.buffer(op.output),
        taps=rows_of(*_taps(op, program.vector(op.weight), none)),
        bias=None if bias is None else rows_of(bias)[0],
        **program.state(op),
    )


def _cost(op: Conv, _: float) -> OperationCost:
    return OperationCost(multiply_adds=float(op.features * op.taps))


def _needs(op: Conv) -> Needs:
    return Needs(state_floats=(op.taps - 1) * padded_row(op.features))


ROW = Row(Conv, same_width, _reference, _gradient, _native, _cost, _needs)
