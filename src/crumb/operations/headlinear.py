"""HeadLinear: a matrix product of each head, by a matrix of its own.

In: f32 (batch, tokens, heads * in_features). Out: f32 (batch, tokens, heads * out_features).
The native engine reads each head's matrix once a step.
Source: the absorbed form of latent attention, arXiv 2405.04434, section 2.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

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
)


@dataclass(frozen=True)
class HeadLinear(Operation):
    """output[h] = input[h] weight[h]^T for each head h."""

    input: str  # (batch, tokens, heads * in_features)
    output: str  # (batch, tokens, heads * out_features)
    weight: str  # each (out_features, in_features); the name has {head}
    heads: int
    in_features: int
    out_features: int

    def matrix(self, head: int) -> TensorSpec:
        """One head's."""
        shape = (self.out_features, self.in_features)
        return TensorSpec(self.weight.format(head=head), shape, matrix=True)

    def tensors(self) -> tuple[TensorSpec, ...]:
        return tuple(self.matrix(head) for head in range(self.heads))


def _by_head(op: HeadLinear, array: Array) -> Array:
    """(batch, tokens, heads * features) as (heads, batch * tokens, features)."""
    xp = array_namespace(array)
    return xp.permute_dims(
        xp.reshape(array, (-1, op.heads, array.shape[-1] // op.heads)), (1, 0, 2)
    )


def _joined(array: Array, like: Array) -> Array:
    """What `_by_head` took apart, with the leading axes of another array."""
    xp = array_namespace(array)
    return xp.reshape(xp.permute_dims(array, (1, 0, 2)), (*like.shape[:-1], -1))


def _matrices(op: HeadLinear, context: Context) -> Array:
    """(heads, out_features, in_features)."""
    weights = [context.weights[spec.name] for spec in op.tensors()]
    return array_namespace(weights[0]).stack(weights)


def _reference(op: HeadLinear, reads: tuple[Array, ...], context: Context) -> tuple[Array, ...]:
    (x,), xp = reads, array_namespace(reads[0])
    turned = xp.matrix_transpose(_matrices(op, context))
    return (_joined(context.multiply(_by_head(op, x), turned), x),)


def _gradient(
    op: HeadLinear, reads: tuple[Array, ...], output: Gradients, context: Context
) -> tuple[Gradients, dict[str, Array]]:
    (x,), xp = reads, array_namespace(reads[0])
    errors = _by_head(op, output[0])
    trained = {}
    if any(spec.name in context.trained for spec in op.tensors()):
        slopes = context.multiply(xp.matrix_transpose(errors), _by_head(op, x))
        trained = {
            spec.name: slopes[head, ...]
            for head, spec in enumerate(op.tensors())
            if spec.name in context.trained
        }
    return (_joined(context.multiply(errors, _matrices(op, context)), x),), trained


def _native(op: HeadLinear, program: NativeProgram) -> None:
    program.add(
        "headlinear",
        input=program.buffer(op.input),
        out=program.buffer(op.output),
        matrices=[program.matrix(spec.name) for spec in op.tensors()],
        **program.grouping(op),
    )


def _cost(op: HeadLinear, _: float) -> OperationCost:
    weights = float(op.heads * op.in_features * op.out_features)
    return OperationCost(multiply_adds=weights, weights=weights)


def _needs(op: HeadLinear) -> Needs:
    widths = (("rows", op.in_features), ("mixed", op.out_features))
    read = tuple((spec.name, op.in_features) for spec in op.tensors())
    return Needs(grouped=Grouped(op.heads, op.heads, widths, read))


ROW = Row(
    HeadLinear,
    lambda op, widths: (op.heads * op.out_features,),
    _reference,
    _gradient,
    _native,
    _cost,
    _needs,
)
