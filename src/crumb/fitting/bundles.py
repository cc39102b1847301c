"""Which matrices of a plan get their formats by themselves, and which get one together.

In: a Plan. Out: Bundles: each matrix of a linear layer or an embedding, and the matrices of one
kind of all experts, or of all heads, of a block. A tied matrix is one. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crumb.architectures.plan import Plan
from crumb.operations.embed import Embed
from crumb.operations.experts import Experts
from crumb.operations.headlinear import HeadLinear
from crumb.operations.linear import Linear
from crumb.operations.operation import Operation, TensorSpec


@dataclass(frozen=True)
class Bundle:
    """Matrices that get one format."""

    name: str  # of the matrix; of several, with {expert} or {head} in it
    matrices: tuple[TensorSpec, ...]

    @property
    def in_features(self) -> int:
        return self.matrices[0].shape[1]


def bundles_of(plan: Plan) -> list[Bundle]:
    """All that a pass finds losses of, in the plan's order."""
    operations = (each for stage in plan.stages for each in stage.operations)
    every = (bundle for operation in operations for bundle in _of_operation(operation))
    return list({bundle.name: bundle for bundle in every}.values())


def _of_operation(operation: Operation) -> Iterator[Bundle]:
    if isinstance(operation, Linear | Embed):
        spec = operation.tensors()[0]
        if spec.matrix:
            yield Bundle(spec.name, (spec,))
    elif isinstance(operation, HeadLinear):
        yield Bundle(operation.weight, operation.tensors())
    elif isinstance(operation, Experts):
        each = (operation.matrices(expert) for expert in range(operation.experts))
        names = (operation.gate, operation.up, operation.down)
        for name, matrices in zip(names, zip(*each, strict=True), strict=True):
            yield Bundle(name, matrices)
