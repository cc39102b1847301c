"""Walk a stage with the calibration tokens, pausing at every group of linear layers.

In: a stage and the buffers that flow into it, batch by batch. Out: each group's input statistics,
then, once the group's new weights are given, the buffers behind it.
Linear layers that read the same input form one group: (q, k, v), o, (gate, up), down. The layers
before a group already run with their quantized weights, as GPTQ's "true sequential" order asks,
and each operation runs exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from crumb.architectures.plan import Stage
from crumb.calibrate.statistics import LayerStatistics, accumulate
from crumb.kernels.threads import parallel_map
from crumb.operations.linear import Linear
from crumb.operations.operation import Array, Context
from crumb.run.array_executor import run_span
from crumb.run.fast_steps import FAST_STEPS


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

    def __init__(
        self, stage: Stage, flowing: list[dict[str, Array]], small: Mapping[str, Array]
    ) -> None:
        self.stage, self.flowing = stage, flowing
        self.weights = dict(small)  # norms and biases, then each group's new weights while needed
        self._place = 0

    def groups(self) -> Iterator[LinearGroup]:
        """Each group in turn, with the operations before it already run."""
        for group in linear_groups(self.stage):
            self._run_to(group.first)
            yield group
        self._run_to(len(self.stage.operations))

    def statistics(self, group: LinearGroup) -> LayerStatistics:
        """Second moment of the group's input over all batches. Raises: SolveError."""
        name = group.linears[0].input
        return accumulate([buffers[name] for buffers in self.flowing], group.linears[0].weight)

    def _run_to(self, end: int) -> None:
        context, begin = Context(self.weights, replaced=FAST_STEPS), self._place

        def one(buffers: dict[str, Array]) -> None:
            # What overflows here is refused, by name, by the statistics of the next group.
            with np.errstate(over="ignore", invalid="ignore"):
                run_span(self.stage, begin, end, buffers, context)

        parallel_map(one, self.flowing)
        for operation in self.stage.operations[begin:end]:
            for spec in operation.tensors():
                if spec.matrix:
                    self.weights.pop(spec.name, None)
        self._place = end
