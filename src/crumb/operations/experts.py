"""Experts: a gated MLP of many, of which each token uses a few.

In: f32 (batch, tokens, in_features), and from Router each token's experts and their shares.
Out: f32 (batch, tokens, out_features). The native engine reads the weights of an expert once a
step, and only if a token of the step uses it.
Sources: arXiv 1701.06538, eq. 1; the clamped gate: the model card of gpt-oss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.operations.activation import FUNCTIONS
from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    Grouped,
    NativeProgram,
    Needs,
    Operation,
    OperationCost,
    Row,
    TensorSpec,
    as_numpy,
)

CLAMPED = "clamped"
"""(up + 1) gate sigmoid(slope gate), gate at most `limit` and up within it on both sides."""


@dataclass(frozen=True)
class Experts(Operation):
    """output[t] = sum over j of shares[t, j] down(function(gate x[t]) * up x[t]) of expert j.

    Tensor names have {expert}. Where `shares_first`, the share multiplies x instead.
    """

    READS = ("input", "shares", "chosen")

    input: str  # (batch, tokens, in_features)
    shares: str  # (batch, tokens, used)
    chosen: str  # (batch, tokens, used) numbers of experts
    output: str  # (batch, tokens, in_features)
    gate: str  # each (inner, in_features)
    up: str  # each (inner, in_features)
    down: str  # each (in_features, inner)
    experts: int
    used: int
    in_features: int
    inner: int
    function: str  # a name of activation.FUNCTIONS, or CLAMPED
    gate_bias: str | None = None  # each (inner,)
    up_bias: str | None = None  # each (inner,)
    down_bias: str | None = None  # each (in_features,)
    slope: float = 1.0  # of CLAMPED
    limit: float = 0.0  # of CLAMPED
    shares_first: bool = False

    def of(self, role: str, expert: int) -> str:
        """The name of an expert's tensor."""
        name: str = getattr(self, role)
        return name.format(expert=expert)

    def matrices(self, expert: int) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        """Gate, up and down of one expert."""
        wide, narrow = (self.inner, self.in_features), (self.in_features, self.inner)
        shapes = {"gate": wide, "up": wide, "down": narrow}
        gate, up, down = (
            TensorSpec(self.of(role, expert), shape, matrix=True) for role, shape in shapes.items()
        )
        return gate, up, down

    def of_expert(self, expert: int) -> list[TensorSpec]:
        """All tensors of one expert."""
        specs = [*self.matrices(expert)]
        for role in ("gate_bias", "up_bias", "down_bias"):
            if getattr(self, role) is not None:
                width = self.in_features if role == "down_bias" else self.inner
                specs.append(TensorSpec(self.of(role, expert), (width,), matrix=False))
        return specs

    def tensors(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for each in range(self.experts) for spec in self.of_expert(each))


@dataclass(frozen=True)
class Passed:
    """What one expert made of the tokens that use it."""

    expert: int
    token: Array  # (rows,) of each row
    x: Array  # (rows, in_features) as gate and up read it
    share: Array  # (rows, 1)
    gate: Array  # (rows, inner)
    up: Array
    inner: Array  # (rows, inner)
    y: Array  # (rows, in_features) before its share


def _gated(op: Experts, gate: Array, up: Array) -> Array:
    if op.function != CLAMPED:
        return FUNCTIONS[op.function].value(gate) * up
    xp = array_namespace(gate)
    gate, up = xp.clip(gate, max=op.limit), xp.clip(up, min=-op.limit, max=op.limit)
    return (up + 1.0) * (gate / (1.0 + xp.exp(-xp.clip(op.slope * gate, min=-80.0))))


def gated_slopes(op: Experts, gate: Array, up: Array, gradient: Array) -> tuple[Array, Array]:
    """Gradients of gate and up from that of what _gated makes of them."""
    if op.function != CLAMPED:
        function = FUNCTIONS[op.function]
        return gradient * up * function.derivative(gate), gradient * function.value(gate)
    xp = array_namespace(gate)
    low, held = gate < op.limit, xp.clip(gate, max=op.limit)
    inside, within = xp.abs(up) < op.limit, xp.clip(up, min=-op.limit, max=op.limit)
    share = 1.0 / (1.0 + xp.exp(-xp.clip(op.slope * held, min=-80.0)))
    slope = share * (1.0 + op.slope * held * (1.0 - share))
    return (
        gradient * (within + 1.0) * slope * xp.astype(low, gate.dtype),
        gradient * held * share * xp.astype(inside, gate.dtype),
    )


def _product(op: Experts, role: str, expert: int, x: Array, context: Context) -> Array:
    xp = array_namespace(x)
    y = context.multiply(x, xp.matrix_transpose(context.weights[op.of(role, expert)]))
    if getattr(op, f"{role}_bias") is not None:
        y += context.weights[op.of(f"{role}_bias", expert)]
    return y


def uses_of(chosen: Array, experts: int) -> list[NDArray[np.int64]]:
    """Of each expert, the uses that are its: token * used + slot. Shapes: (tokens, used)."""
    numbers = as_numpy(chosen).astype(np.int64).reshape(-1)
    return [np.nonzero(numbers == expert)[0] for expert in range(experts)]


def inner_of(op: Experts, expert: int, read: Array, context: Context) -> tuple[Array, Array, Array]:
    """Gate, up and what the down matrix reads. Shapes: (rows, in_features) -> (rows, inner)."""
    gate, up = (_product(op, role, expert, read, context) for role in ("gate", "up"))
    return gate, up, _gated(op, gate, up)


def passes(
    op: Experts, x: Array, shares: Array, uses: list[NDArray[np.int64]], context: Context
) -> Iterator[Passed]:
    """Each expert that a token uses, with those tokens. Shapes: (tokens, ...)."""
    xp = array_namespace(x)
    for expert, own in enumerate(uses):
        if not own.size:
            continue
        token = xp.asarray(own // op.used, device=x.device)
        one_by_one = xp.reshape(shares, (-1,))
        share = xp.take(one_by_one, xp.asarray(own, device=x.device), axis=0)[:, None]
        read = xp.take(x, token, axis=0)
        read = read * share if op.shares_first else read
        gate, up, inner = inner_of(op, expert, read, context)
        y = _product(op, "down", expert, inner, context)
        yield Passed(expert, token, read, share, gate, up, inner, y)


def _by_token(op: Experts, rows: list[Array], uses: list[NDArray[np.int64]]) -> Array:
    """Rows of experts one after the other, as (tokens, used, ...)."""
    xp = array_namespace(rows[0])
    together = xp.concat(rows, axis=0)
    places = xp.asarray(np.argsort(np.concatenate(uses)), device=together.device)
    ordered = xp.take(together, places, axis=0)
    return xp.reshape(ordered, (-1, op.used, *together.shape[1:]))


def _flat(array: Array) -> Array:
    return array_namespace(array).reshape(array, (-1, array.shape[-1]))


def _reference(op: Experts, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    (x, shares, chosen), xp = (_flat(each) for each in reads), array_namespace(reads[0])
    uses = uses_of(chosen, op.experts)
    rows = [
        each.y if op.shares_first else each.y * each.share
        for each in passes(op, x, shares, uses, context)
    ]
    slots = _by_token(op, rows, uses)
    total = slots[:, 0, :]
    for slot in range(1, op.used):
        total = total + slots[:, slot, :]
    return (xp.reshape(total, reads[0].shape),)


def _gradient(
    op: Experts, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    xp = array_namespace(reads[0])
    x, shares, chosen = (_flat(each) for each in reads)
    toward, uses = _flat(output[0]), uses_of(chosen, op.experts)
    of_inputs, of_shares = [], []
    trained = {
        spec.name: xp.zeros(spec.shape, dtype=x.dtype, device=x.device)
        for spec in op.tensors()
        if spec.name in context.trained
    }
    for each in passes(op, x, shares, uses, context):
        dy = xp.take(toward, each.token, axis=0)
        if not op.shares_first:
            of_shares.append(xp.sum(dy * each.y, axis=-1))
            dy = dy * each.share
        dinner = context.multiply(dy, context.weights[op.of("down", each.expert)])
        dgate, dup = gated_slopes(op, each.gate, each.up, dinner)
        read = context.multiply(dgate, context.weights[op.of("gate", each.expert)])
        read += context.multiply(dup, context.weights[op.of("up", each.expert)])
        if op.shares_first:
            of_shares.append(xp.sum(read * xp.take(x, each.token, axis=0), axis=-1))
            read = read * each.share
        of_inputs.append(read)
        for role, error, inputs in (
            ("gate", dgate, each.x),
            ("up", dup, each.x),
            ("down", dy, each.inner),
        ):
            name, bias = op.of(role, each.expert), f"{role}_bias"
            if name in trained:
                trained[name] = context.multiply(xp.matrix_transpose(error), inputs)
            if getattr(op, bias) is not None and op.of(bias, each.expert) in trained:
                trained[op.of(bias, each.expert)] = xp.sum(error, axis=0)
    gradients = (
        xp.reshape(xp.sum(_by_token(op, of_inputs, uses), axis=1), reads[0].shape),
        xp.reshape(_by_token(op, of_shares, uses), reads[1].shape),
        None,
    )
    return gradients, trained


def _native(op: Experts, program: NativeProgram) -> None:
    everyone = range(op.experts)

    def biases(role: str) -> Array | None:
        if getattr(op, role) is None:
            return None
        vectors = [program.vector(op.of(role, expert)) for expert in everyone]
        return np.stack([vector for vector in vectors if vector is not None])

    program.add(
        "experts",
        input=program.buffer(op.input),
        shares=program.buffer(op.shares),
        chosen=program.buffer(op.chosen),
        out=program.buffer(op.output),
        **{
            # Experts that no token uses are never read.
            role: [program.matrix(op.of(role, expert), at_once=False) for expert in everyone]
            for role in ("gate", "up", "down")
        },
        **{role: biases(role) for role in ("gate_bias", "up_bias", "down_bias")},
        function="silu" if op.function == CLAMPED else FUNCTIONS[op.function].native,
        slope=op.slope,
        limit=op.limit,
        shares_first=op.shares_first,
        **program.grouping(op),
    )


def _cost(op: Experts, _: float) -> OperationCost:
    weights = 3.0 * op.in_features * op.inner
    return OperationCost(
        multiply_adds=op.used * weights,
        weights=op.experts * weights,
        parts=op.experts,
        parts_used=op.used,
    )


def _needs(op: Experts) -> Needs:
    wide, narrow = op.in_features, op.inner
    widths = (("rows", wide), ("gates", narrow), ("ups", narrow), ("mixed", wide))
    specs = [spec for expert in range(op.experts) for spec in op.matrices(expert)]
    read = tuple((spec.name, spec.shape[1]) for spec in specs)
    return Needs(grouped=Grouped(op.experts, op.used, widths, read))


ROW = Row(
    Experts,
    lambda op, widths: (op.in_features,),
    _reference,
    _gradient,
    _native,
    _cost,
    _needs,
)
