"""Walk a stage with the calibration tokens, pausing at every group of linear layers.

In: a stage and the buffers that flow into it, batch by batch. Out: each group's input statistics,
then, once the group's new matrices are among the tensors, the buffers behind it.
Linear layers that read the same input form one group: (q, k, v), o, (gate, up), down; all experts
of a block form one, and so do matrices of heads. The layers before a group already run with their
quantized weights, as GPTQ's "true sequential" order asks, and each operation runs exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.calibrate.statistics import LayerStatistics, accumulate
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.operations.experts import Experts
from crumb.operations.headlinear import HeadLinear
from crumb.operations.linear import Linear
from crumb.run.program import Floats
from crumb.run.whole_texts import (
    Batch,
    WholeTexts,
    behind_stage,
    cut_batches,
    cut_pairs,
    of_stage,
    plan_texts,
)
from crumb.texts.pairs import PairTokens


@dataclass(frozen=True)
class LinearGroup:
    """Consecutive linear layers that read one input."""

    first: int  # index of the first in the stage's operations
    linears: tuple[Linear, ...]

    @property
    def layers(self) -> tuple[Linear, ...]:
        return self.linears

    @property
    def end(self) -> int:
        return self.first + len(self.linears)


@dataclass(frozen=True)
class ExpertGroup:
    """All experts of a block, each of which reads the tokens that are routed to it."""

    first: int  # its index in the stage's operations
    experts: Experts

    @property
    def layers(self) -> tuple[Experts, ...]:
        return (self.experts,)

    @property
    def end(self) -> int:
        return self.first + 1


@dataclass(frozen=True)
class HeadGroup:
    """Matrices of heads, each of which reads its own head's features."""

    first: int  # their index in the stage's operations
    heads: HeadLinear

    @property
    def layers(self) -> tuple[HeadLinear, ...]:
        return (self.heads,)

    @property
    def end(self) -> int:
        return self.first + 1


Group = LinearGroup | ExpertGroup | HeadGroup


def layer_groups(stage: Stage) -> list[Group]:
    """The stage's layers, grouped by the input they share."""
    groups: list[Group] = []
    for index, operation in enumerate(stage.operations):
        last = groups[-1] if groups else None
        if isinstance(operation, Experts):
            groups.append(ExpertGroup(index, operation))
        elif isinstance(operation, HeadLinear):
            groups.append(HeadGroup(index, operation))
        elif not isinstance(operation, Linear):
            continue
        elif (
            isinstance(last, LinearGroup)
            and last.end == index
            and last.linears[0].input == operation.input
        ):
            groups[-1] = LinearGroup(last.first, (*last.linears, operation))
        else:
            groups.append(LinearGroup(index, (operation,)))
    return groups


class StageWalk:
    """One stage on its way; `flowing` holds the live buffers of every batch."""

    def __init__(self, texts: WholeTexts, index: int, flowing: Sequence[Batch]) -> None:
        self._texts, self._index, self._before = texts, index, flowing
        self.stage = texts.checkpoint.plan.stages[index]
        self.flowing = [Batch(each.tokens, dict(each.buffers), each.read) for each in flowing]

    def groups(self) -> Iterator[Group]:
        """Each group in turn, with the operations before it already run.

        At the end `flowing` also has what flowed past the stage.
        """
        place = 0
        for group in layer_groups(self.stage):
            self._texts.run(self._index, place, group.first, self.flowing)
            yield group
            place = group.first
        self._texts.run(self._index, place, len(self.stage.operations), self.flowing)
        for before, batch in zip(self._before, self.flowing, strict=True):
            batch.buffers = before.buffers | batch.buffers

    def inputs(self, group: Group) -> list[Floats]:
        """What the group reads, (rows, in_features) of each batch."""
        layer = group.layers[0]
        heads = layer.heads if isinstance(layer, HeadLinear) else 1
        return self.features(layer.input, heads * layer.in_features)

    def features(self, name: str, width: int) -> list[Floats]:
        """A buffer that is live where the walk has come to, (rows, width) of each batch."""
        return [each.features(name, width) for each in self.flowing]

    def head_statistics(
        self, group: HeadGroup, head: int, weights: NDArray[np.float32] | None = None
    ) -> LayerStatistics:
        """Second moment of one head's features. Raises: SolveError."""
        width = group.heads.in_features
        own = [each[:, head * width : (head + 1) * width] for each in self.inputs(group)]
        return accumulate(own, group.heads.matrix(head).name, weights)

    def statistics(
        self, group: LinearGroup, weights: NDArray[np.float32] | None = None
    ) -> LayerStatistics:
        """Second moment of the group's input over all batches, its tokens weighted.

        Shapes: weights (tokens,). Raises: SolveError.
        """
        return accumulate(self.inputs(group), group.linears[0].weight, weights)


def batches_of(tokens: NDArray[np.int64] | PairTokens) -> list[Batch]:
    """Calibration texts, or pairs, some at a time."""
    if isinstance(tokens, PairTokens):
        return [each for rows in tokens.groups for each in cut_pairs(rows.sources, rows.inputs)]
    return cut_batches(tokens)


def walk_model(
    checkpoint: Checkpoint, tokens: NDArray[np.int64] | PairTokens
) -> Iterator[tuple[StageWalk, Group]]:
    """Every group of a model whose matrices stay as they are, where the walk has come to it.

    Ends with the head's input: nothing needs the logits.
    """
    flowing, plan = batches_of(tokens), checkpoint.plan
    texts = plan_texts(checkpoint, flowing)
    for index, stage in enumerate(plan.stages):
        walk = StageWalk(texts, index, of_stage(stage, flowing))
        for group in walk.groups():
            yield walk, group
            if index == len(plan.stages) - 1:
                return
        flowing = behind_stage(plan, index, flowing, walk.flowing)
