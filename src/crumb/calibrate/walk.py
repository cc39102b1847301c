"""Walk a stage with the calibration tokens, pausing at every group of linear layers.

In: a stage and the buffers that flow into it, batch by batch. Out: each group's input statistics,
then, once the group's new matrices are among the tensors, the buffers behind it.
Linear layers that read the same input form one group: (q, k, v), o, (gate, up), down. The layers
before a group already run with their quantized weights, as GPTQ's "true sequential" order asks,
and each operation runs exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.calibrate.statistics import LayerStatistics, accumulate
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.operations.linear import Linear
from crumb.run.program import Floats
from crumb.run.whole_texts import Batch, WholeTexts, cut_batches, plan_texts


@dataclass(frozen=True)
class LinearGroup:
    """Consecutive linear layers that read one input."""

    first: int  # index of the first in the stage's operations
    linears: tuple[Linear, ...]

    @property
    def end(self) -> int:
        return self.first + len(self.linears)


def linear_groups(stage: Stage) -> list[LinearGroup]:
    """The stage's linear layers, grouped by the input they share."""
    groups: list[LinearGroup] = []
    for index, operation in enumerate(stage.operations):
        if not isinstance(operation, Linear):
            continue
        last = groups[-1] if groups else None
        if last and last.end == index and last.linears[0].input == operation.input:
            groups[-1] = LinearGroup(last.first, (*last.linears, operation))
        else:
            groups.append(LinearGroup(index, (operation,)))
    return groups


class StageWalk:
    """One stage on its way; `flowing` holds the live buffers of every batch."""

    def __init__(self, texts: WholeTexts, index: int, flowing: Sequence[Batch]) -> None:
        self._texts, self._index, self._before = texts, index, flowing
        self.stage = texts.checkpoint.plan.stages[index]
        self.flowing = [Batch(each.tokens, dict(each.buffers)) for each in flowing]

    def groups(self) -> Iterator[LinearGroup]:
        """Each group in turn, with the operations before it already run.

        At the end `flowing` also has what flowed past the stage.
        """
        place = 0
        for group in linear_groups(self.stage):
            self._texts.run(self._index, place, group.first, self.flowing)
            yield group
            place = group.first
        self._texts.run(self._index, place, len(self.stage.operations), self.flowing)
        for before, batch in zip(self._before, self.flowing, strict=True):
            batch.buffers = before.buffers | batch.buffers

    def inputs(self, group: LinearGroup) -> list[Floats]:
        """What the group reads, (rows, in_features) of each batch."""
        linear = group.linears[0]
        return [each.features(linear.input, linear.in_features) for each in self.flowing]

    def statistics(
        self, group: LinearGroup, weights: NDArray[np.float32] | None = None
    ) -> LayerStatistics:
        """Second moment of the group's input over all batches, its tokens weighted.

        Shapes: weights (tokens,). Raises: SolveError.
        """
        return accumulate(self.inputs(group), group.linears[0].weight, weights)


def walk_model(
    checkpoint: Checkpoint, tokens: NDArray[np.int64]
) -> Iterator[tuple[StageWalk, LinearGroup]]:
    """Every group of a model whose matrices stay as they are, where the walk has come to it.

    Ends with the head's input: nothing needs the logits.
    """
    flowing = cut_batches(tokens)
    texts = plan_texts(checkpoint, flowing)
    for index in range(len(checkpoint.plan.stages)):
        walk = StageWalk(texts, index, flowing)
        for group in walk.groups():
            yield walk, group
            if index == len(checkpoint.plan.stages) - 1:
                return
        flowing = walk.flowing
