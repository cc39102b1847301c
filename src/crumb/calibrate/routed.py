"""Statistics of experts, each from the tokens that are routed to it.

In: a walk that has come to a block's experts, weights of its tokens. Out: of each expert what its
gate and up read, then, with these among the tensors, what its down reads; how many tokens that is.
A token counts by the square of its share, the factor of an error in the block's output; where
shares scale the input instead, each counts alike.
An expert with few tokens borrows: all tokens of the block, run through it, make up the number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crumb.calibrate.statistics import LayerStatistics, accumulate
from crumb.calibrate.walk import ExpertGroup, StageWalk
from crumb.operations.experts import inner_of, uses_of
from crumb.operations.operation import Context, TensorSpec
from crumb.run.program import Floats

LEAST_TOKENS_PER_FEATURE = 1.0
"""Tokens that an expert needs for each feature of an input; fewer are made up by borrowing."""

BORROWED_TOKENS = 4096
"""At most so many of a block's tokens, evenly spread, run through an expert that borrows."""


@dataclass(frozen=True)
class Routed:
    """How many tokens an expert's statistics come from."""

    tokens: int  # that were routed to it
    borrowed: float  # weight of the block's tokens among them, 0 to 1


class RoutedTokens:
    """The calibration tokens of a block as its experts get them."""

    def __init__(self, walk: StageWalk, group: ExpertGroup, weights: Floats | None) -> None:
        op = self.experts = group.experts
        shares, chosen = (
            np.concatenate(walk.features(name, op.used)) for name in (op.shares, op.chosen)
        )
        self._x, self._shares = walk.inputs(group), shares.reshape(-1)
        # What a borrowed token would be scaled by is not there: it is the block's mean square.
        self._usual = np.float32(np.sqrt(np.mean(self._shares**2)) if op.shares_first else 1.0)
        self._begins = np.cumsum([0, *map(len, self._x)])
        self._uses = uses_of(chosen, op.experts)
        tokens = int(self._begins[-1])
        self._weights = np.ones(tokens, np.float32) if weights is None else weights
        self._spread = np.arange(0, tokens, -(-tokens // BORROWED_TOKENS))

    def least(self, in_features: int) -> int:
        """Tokens from which on an expert has statistics of its own."""
        return max(1, round(LEAST_TOKENS_PER_FEATURE * in_features))

    @property
    def count(self) -> int:
        """Tokens of the block."""
        return int(self._begins[-1])

    def uses(self) -> list[int]:
        """How many tokens are routed to each expert."""
        return [len(each) for each in self._uses]

    def routed(self, expert: int, matrix: TensorSpec) -> Routed:
        """What the statistics of the input of an expert's matrix come from."""
        tokens, least = len(self._uses[expert]), self.least(matrix.shape[1])
        return Routed(tokens, max(0.0, 1.0 - tokens / least))

    def read(self, expert: int) -> LayerStatistics:
        """Of what gate and up read. Raises: SolveError."""
        gate = self.experts.matrices(expert)[0]
        return self._made_up(expert, gate, lambda rows: rows, lambda: self._of_block)

    def inner(self, expert: int, context: Context) -> LayerStatistics:
        """Of what down reads, by the gate and up of the context. Raises: SolveError."""
        down = self.experts.matrices(expert)[2]

        def inside(rows: Floats) -> Floats:
            made: Floats = inner_of(self.experts, expert, rows, context)[2]
            return made

        def of_block() -> LayerStatistics:
            rows = inside(self._rows(self._spread) * self._usual)
            return accumulate([rows], down.name, _mean_one(self._weights[self._spread]))

        return self._made_up(expert, down, inside, of_block)

    def own(self, expert: int) -> tuple[Floats, Floats]:
        """What an expert reads, and how much an error of its output counts for each token of it.

        Shapes: -> (uses, in_features), (uses,).
        """
        uses = self._uses[expert]
        token, share = uses // self.experts.used, self._shares[uses]
        rows, weights = self._rows(token), self._weights[token]
        if self.experts.shares_first:
            return rows * share[:, None], weights
        return rows, weights * share**2

    def _made_up(
        self,
        expert: int,
        matrix: TensorSpec,
        inside: Callable[[Floats], Floats],
        of_block: Callable[[], LayerStatistics],
    ) -> LayerStatistics:
        borrowed, uses = self.routed(expert, matrix).borrowed, self._uses[expert]
        if not len(uses):
            return of_block()
        rows, weights = self.own(expert)
        own = accumulate([inside(rows)], matrix.name, _mean_one(weights))
        if not borrowed:
            return own
        block = of_block()
        hessian = (1.0 - borrowed) * own.hessian
        hessian += borrowed * block.hessian
        missing = min(self.least(matrix.shape[1]) - len(uses), block.tokens)
        return replace(own, hessian=hessian, tokens=own.tokens + missing)

    @cached_property
    def _of_block(self) -> LayerStatistics:
        """Of what all experts read."""
        block = accumulate(self._x, self.experts.input, self._weights)
        return replace(block, hessian=block.hessian * float(self._usual) ** 2)

    def _rows(self, tokens: NDArray[np.int64]) -> Floats:
        """Some tokens' features, (count, in_features); tokens ascend."""
        rows = np.empty((len(tokens), self.experts.in_features), np.float32)
        places = np.searchsorted(tokens, self._begins)
        for batch, begin in enumerate(self._begins[:-1]):
            part = slice(places[batch], places[batch + 1])
            rows[part] = self._x[batch][tokens[part] - begin]
        return rows


def _mean_one(weights: Floats) -> Floats:
    mean = float(weights.mean())
    return weights / np.float32(mean) if mean > 0.0 else np.ones_like(weights)
