"""Linear: a matrix product, quantized or not.

In: f32 (batch, tokens, in_features). Out: f32 (batch, tokens, out_features).
The native engine joins neighbours that read one buffer and quantizes their input once.
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from crumb.operations.operation import (
    Array,
    Context,
    Gradients,
    Operation,
    OperationCost,
    Row,
    TensorSpec,
)


@dataclass(frozen=True)
class Linear(Operation):
    """output = input weight^T + bias."""

    input: str  # (batch, tokens, in_features)
    output: str  # (batch, tokens, out_features)
    weight: str  # (out_features, in_features)
    bias: str | None  # (out_features,)
    in_features: int
    out_features: int
    exact: bool = False  # stays float: a router, whose small errors choose other experts

    def tensors(self) -> tuple[TensorSpec, ...]:
        weight = TensorSpec(self.weight, (self.out_features, self.in_features), not self.exact)
        if self.bias is None:
            return (weight,)
        return (weight, TensorSpec(self.bias, (self.out_features,), matrix=False))


def _reference(op: Linear, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    (x,), xp = reads, array_namespace(reads[0])
    flat = xp.reshape(x, (-1, op.in_features))
    y = context.multiply(flat, xp.matrix_transpose(context.weights[op.weight]))
    if op.bias is not None:
        y += context.weights[op.bias]
    return (xp.reshape(y, (*x.shape[:-1], op.out_features)),)


def _gradient(
    op: Linear, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    (x,), xp = reads, array_namespace(reads[0])
    flat = xp.reshape(output[0], (-1, op.out_features))
    trained = {}
    if op.weight in context.trained:
        inputs = xp.reshape(x, (-1, op.in_features))
        trained[op.weight] = context.multiply(xp.matrix_transpose(flat), inputs)
    if op.bias is not None and op.bias in context.trained:
        trained[op.bias] = xp.sum(flat, axis=0)
    return (xp.reshape(context.multiply(flat, context.weights[op.weight]), x.shape),), trained


def _cost(op: Linear, _: float) -> OperationCost:
    weights = float(op.in_features) * op.out_features
    return OperationCost(multiply_adds=weights, weights=weights)


ROW = Row(
    Linear,
    lambda op, widths: (op.out_features,),
    _reference,
    _gradient,
    lambda op, program: program.linear(op),
    _cost,
)
