"""Trained rounding: codes and scales of a block against what the float block puts out.

In: a stage, its quantized matrices, what flows into it in the quantized model, what flows out of it
in the float one, the weight of each token. Out: matrices in new codes, where the texts that were
held out say that they are better. One text in four is held out. The same seed gives the same bytes.
Refuses nothing: what does not help is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.calibrate.trained_matrix import Rates, TrainedMatrix
from crumb.kernels.products import multiply
from crumb.operations.operation import Array, Context
from crumb.run.array_executor import run_stage
from crumb.run.backward import run_reading, walk_back
from crumb.run.model import start_buffers

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]

STEP_TOKENS = 1024
"""Tokens of one step, in whole texts."""

HELD_OUT = 4
"""One text of so many judges and is not trained on."""

RATES = Rates(code=0.001, scale=1.4e-3)
"""At the first step; they fall to 0."""

ARRAYS = 6
"""As often is a trained matrix in memory: latent, decoded, its gradient, its mean, two more."""

TRAINING_WORK = 4.0
"""Of a step, in forward passes of its tokens: forward, back through inputs and weights, Adam."""


@dataclass(frozen=True)
class BlockTexts:
    """All calibration texts at one block."""

    tokens: Array  # (texts, length)
    inputs: Array  # (texts, length, features) of the quantized model
    targets: Array  # (texts, length, features) the float block's outputs
    weights: Array  # (texts, length) of each token

    def some(self, texts: NDArray[np.intp]) -> BlockTexts:
        return BlockTexts(
            self.tokens[texts], self.inputs[texts], self.targets[texts], self.weights[texts]
        )


@dataclass(frozen=True)
class Trained:
    """What training made of a block."""

    before: float  # error of the held-out texts, as a share of what the block puts out
    after: float

    @property
    def accepted(self) -> bool:
        return self.after < self.before


class BlockTraining:
    """One stage in training."""

    def __init__(
        self, stage: Stage, input: str, floats: Mapping[str, Array], texts: BlockTexts
    ) -> None:
        """`input`: what flows in. `floats`: its tensors that are not trained."""
        self.stage, self.input, self.floats, self.texts = stage, input, floats, texts
        every = np.arange(texts.tokens.shape[0])  # of each domain some: they lie side by side
        self.judges = every[HELD_OUT - 1 :: HELD_OUT] if len(every) >= HELD_OUT else every
        self.train_on = np.setdiff1d(every, self.judges) if len(every) >= HELD_OUT else every
        self.rotations: dict[object, tuple[Array, Array]] = {}

    def train(
        self,
        matrices: Mapping[str, TrainedMatrix],
        steps: int,
        seed: Sequence[int],
        told: Callable[[int], None],
    ) -> None:
        """Walk so many steps; the rates fall to 0. `told` of each step."""
        generator = np.random.default_rng(list(seed))
        per_step = max(STEP_TOKENS // self.texts.tokens.shape[1], 1)
        queue: list[int] = []
        for step in range(1, steps + 1):
            while len(queue) < per_step:
                queue += generator.permutation(self.train_on).tolist()
            some, queue = np.array(queue[:per_step]), queue[per_step:]
            gradients = self._gradients(matrices, self.texts.some(some))
            for name, matrix in matrices.items():
                matrix.step(gradients[name], 1 - (step - 1) / steps, step, RATES)
            told(step)

    def error(self, weights: Mapping[str, Floats]) -> float:
        """Weighted error of the held-out texts over the weighted square of their targets."""
        total = size = 0.0
        context = self._context(weights, ())
        for text in self.judges:
            judge = self.texts.some(np.array([text]))
            outputs = run_stage(self.stage, self._buffers(judge), context)
            total += _weighted_square(outputs[self.stage.outputs[0]] - judge.targets, judge)
            size += _weighted_square(judge.targets - judge.inputs, judge)
        return total / max(size, float(np.finfo(np.float32).tiny))

    def _gradients(
        self, matrices: Mapping[str, TrainedMatrix], texts: BlockTexts
    ) -> dict[str, Array]:
        weights = {name: matrix.weights() for name, matrix in matrices.items()}
        context, output = self._context(weights, tuple(weights)), self.stage.outputs[0]
        buffers = self._buffers(texts)
        reads = run_reading(self.stage, buffers, context)
        gradient = (buffers[output] - texts.targets) * texts.weights[..., None]
        return walk_back(self.stage, reads, {output: gradient}, context, lambda *_: None)

    def _buffers(self, texts: BlockTexts) -> dict[str, Array]:
        return start_buffers(texts.tokens) | {self.input: texts.inputs}

    def _context(self, weights: Mapping[str, Floats], trained: tuple[str, ...]) -> Context:
        return Context({**self.floats, **weights}, None, self.rotations, trained, multiply)


def train_block(
    training: BlockTraining,
    matrices: Mapping[str, TrainedMatrix],
    steps: int,
    seed: Sequence[int] = (0,),
    told: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train all matrices of a block together, and judge what is stored of them."""
    before = training.error({name: each.weights() for name, each in matrices.items()})
    training.train(matrices, steps, seed, told)
    after = training.error({name: each.weights(as_halves=True) for name, each in matrices.items()})
    return Trained(before, after)


def _weighted_square(error: Array, texts: BlockTexts) -> float:
    """The sum over tokens of their weight times their mean squared error."""
    xp = array_namespace(error)
    return float(xp.sum(xp.mean(error * error, axis=-1) * texts.weights))
