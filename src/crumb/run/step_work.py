"""What a step of a model costs at least: bytes of weights that are read, multiply-adds.

In: a checkpoint. Out: Work, from the rows of the plan's operations. What an encoder does is apart:
it runs once for each token that is read, the rest for each that is written.
Attention is left out: it grows with the text. Refuses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from crumb.architectures.plan import Stage
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.operations.operation import OperationCost
from crumb.operations.table import row_of


@dataclass(frozen=True)
class Work:
    """What a step of this model costs at least."""

    weight_bytes: int  # of all matrices that are multiplied with, an encoder's apart
    experts: tuple[tuple[OperationCost, int], ...]  # those of which a token uses some, their bytes
    block_products: int  # multiply-adds of one token, without the head
    head_products: int  # of one row of logits
    source_products: int = 0  # of one token that an encoder reads

    def bytes_read(self, tokens: int) -> float:
        """Of matrices by a step of so many tokens, experts being used equally."""
        unread = sum(size * (1.0 - cost.share_read(tokens)) for cost, size in self.experts)
        return self.weight_bytes - unread

    def products(self, tokens: int, rows: int) -> int:
        """Multiply-adds of some tokens, `rows` of which go through the head."""
        return tokens * self.block_products + rows * self.head_products

    def prompt_products(self, tokens: int) -> int:
        """Multiply-adds until the logits behind a prompt, or behind the first token of an answer
        to what an encoder has read.
        """
        if self.source_products:
            return tokens * self.source_products + self.products(1, 1)
        return self.products(tokens, 1)


def work_of(checkpoint: Checkpoint) -> Work:
    """What one token costs, from the rows of the plan's operations."""
    products: dict[bool, float] = {True: 0.0, False: 0.0}  # by whether a stage runs once
    stages, total, some = checkpoint.plan.stages, 0, []
    for stage in stages:
        costs = [(each, row_of(each).cost(each, 0.0)) for each in stage.operations]
        if stage is not stages[-1]:
            products[stage.once] += sum(cost.multiply_adds for _, cost in costs)
        for operation, cost in (pair for pair in costs if pair[1].weights and not stage.once):
            size = sum(
                checkpoint.tensors.entry(spec.name).size_bytes
                for spec in operation.tensors()
                if len(spec.shape) == 2
            )
            total += size
            if cost.parts > cost.parts_used:
                some.append((cost, size))
    often, once = int(products[False]), int(products[True])
    return Work(total, tuple(some), often, _products(stages[-1]), once)


def _products(stage: Stage) -> int:
    return int(sum(row_of(each).cost(each, 0.0).multiply_adds for each in stage.operations))
