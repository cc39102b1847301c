"""What the matrices of a float model read, group by group: statistics for whoever solves them.

In: a walk that has come to a group, weights of its tokens, the tensors. Out: a SharedInput for the
matrices of each input: one of linear layers, two of every expert, one of every head.
Nothing is accumulated before it is asked for. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from crumb.calibrate.routed import RoutedTokens
from crumb.calibrate.statistics import LayerStatistics
from crumb.calibrate.walk import ExpertGroup, Group, HeadGroup, StageWalk
from crumb.checkpoints.tensor_map import TensorMap
from crumb.kernels.products import multiply
from crumb.operations.experts import Experts
from crumb.operations.operation import Context, TensorSpec
from crumb.run.program import Floats


@dataclass(frozen=True)
class SharedInput:
    """An input, and the matrices that read it."""

    matrices: tuple[TensorSpec, ...]
    statistics: Callable[[], LayerStatistics]


def inputs_of(
    walk: StageWalk, group: Group, weights: Floats | None, tensors: TensorMap
) -> Iterator[SharedInput]:
    """The inputs of a group. Shapes: weights (tokens,)."""
    if isinstance(group, ExpertGroup):
        tokens = RoutedTokens(walk, group, weights)
        for expert in range(group.experts.experts):
            gate, up, down = group.experts.matrices(expert)
            yield SharedInput((gate, up), partial(tokens.read, expert))
            yield SharedInput((down,), partial(_inner, tokens, expert, tensors))
    elif isinstance(group, HeadGroup):
        for head in range(group.heads.heads):
            statistics = partial(walk.head_statistics, group, head, weights)
            yield SharedInput((group.heads.matrix(head),), statistics)
    else:
        specs = tuple(linear.tensors()[0] for linear in group.linears)
        yield SharedInput(specs, partial(walk.statistics, group, weights))


def _inner(tokens: RoutedTokens, expert: int, tensors: TensorMap) -> LayerStatistics:
    return tokens.inner(expert, expert_context(tokens.experts, expert, tensors))


def expert_context(experts: Experts, expert: int, tensors: TensorMap) -> Context:
    """The weights of one expert, ready to run."""
    weights = {spec.name: tensors.read_float(spec.name) for spec in experts.of_expert(expert)}
    return Context(weights, multiply=multiply)
