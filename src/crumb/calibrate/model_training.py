"""Training of all blocks together: codes and scales against the float model's distributions.

In: the float model, its quantized matrices, calibration texts. Out: matrices in the codes that had
the least divergence on the texts held out. The loss is the mean KL of the float model's next-token
distribution from the quantized one's; steps are Adam's on the grid as it is (trained_matrix.py).
It ends when that divergence has stopped falling. The same seed gives the same bytes, and what
`state` gives goes on to them. Refuses models that gradients do not go through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.calibrate.trained_matrix import Rates, TrainedMatrix
from crumb.operations.operation import Array, as_numpy
from crumb.run.backward import Backward
from crumb.run.model import Model

STEP_TOKENS = 1024
"""Tokens of one step, in whole texts."""

HELD_OUT, MOST_JUDGES = 4, 16
"""One text of so many judges and is not trained on; no more texts judge than that."""

RATES = Rates(code=0.0007, scale=2e-3)
"""At the first step; they fall to 0."""

JUDGED_EVERY, PATIENCE = 50, 4
"""Steps between two judgements, and how many in a row may find nothing better."""

TRAINING_WORK = 5.0
"""Of a step, in forward passes of its tokens: the float model's, ours, ours again, and back."""

MOST_WEIGHTS = 1 << 29
"""Of matrices in training: larger models have their blocks trained one by one alone."""

STORED_BYTES = 4 * 2 + 1
"""Of each weight on disk while it is trained: latent code, its mean, and the best code so far."""

ARRAYS = 7
"""As often is a trained matrix in memory: latent, its mean, decoded, float, gradient, two more."""


@dataclass
class StudentModel(Model):
    """The quantized model, some of whose matrices are in training."""

    matrices: Mapping[str, TrainedMatrix] = field(default_factory=dict)
    _decoded: dict[str, Array] = field(default_factory=dict)

    def decode(self, as_halves: bool = False) -> None:
        """Take the weights that the codes stand for now."""
        for name, matrix in self.matrices.items():
            self._decoded[name] = matrix.weights(as_halves)

    def stage_weights(self, stage: Stage) -> Mapping[str, Array]:
        specs = stage.tensors()
        others = [spec for spec in specs if spec.name not in self.matrices]
        trained = {spec.name for spec in specs} & self.matrices.keys()
        return self.floats(others) | {name: self._decoded[name] for name in trained}


@dataclass
class TrainingState:
    """How far a training is; with the matrices' states it is all that decides what follows."""

    step: int = 0
    before: float = float("inf")  # divergence of the texts held out, in nats
    best: float = float("inf")
    failures: int = 0  # judgements in a row that found nothing better
    ended: bool = False


class ModelTraining:
    """One training of a whole model."""

    def __init__(
        self,
        teacher: Model,
        student: StudentModel,
        tokens: NDArray[np.int64],
        steps: int,
        seed: int,
    ) -> None:
        """Shapes: tokens (texts, length)."""
        self.teacher, self.student, self.tokens = teacher, student, tokens
        self.steps, self.seed = steps, seed
        every = np.arange(len(tokens))
        judges = every[HELD_OUT - 1 :: HELD_OUT] if len(every) >= HELD_OUT else every
        self.train_on = np.setdiff1d(every, judges) if len(every) >= HELD_OUT else every
        self.judges = judges[:: -(-len(judges) // MOST_JUDGES)]
        self.progress = TrainingState()
        self.best: dict[str, dict[str, NDArray[Any]]] = {}

    def run(
        self,
        told: Callable[[int], None] = lambda steps: None,
        judged: Callable[[], None] = lambda: None,
    ) -> TrainingState:
        """Train on from where it is. `told` of steps behind us, `judged` after each judgement."""
        progress, matrices = self.progress, self.student.matrices
        order = self._order()
        for _ in range(progress.step):
            next(order)
        self.student.decode(as_halves=True)
        if not self.best:
            progress.before = progress.best = self.divergence()
            self._remember()
            judged()
        while not progress.ended:
            self.student.decode()
            gradients = self._gradients(self.teacher.as_array(self.tokens[next(order)]))
            progress.step += 1
            left = 1 - (progress.step - 1) / self.steps
            for name, matrix in matrices.items():
                matrix.step(gradients.pop(name), left, progress.step, RATES)
            told(1)
            if progress.step % JUDGED_EVERY == 0 or progress.step == self.steps:
                self._judge()
                judged()
        told(self.steps - progress.step)
        return progress

    def divergence(self) -> float:
        """Mean KL from the float model over the texts held out, in nats a token."""
        total = 0.0
        for text in self.judges:
            tokens = self.teacher.as_array(self.tokens[text : text + 1])
            float_logits, logits = self.teacher.logits(tokens), self.student.logits(tokens)
            xp = array_namespace(logits)
            there, here = _log_softmax(float_logits), _log_softmax(logits)
            total += float(xp.mean(xp.sum(xp.exp(there) * (there - here), axis=-1)))
        return total / len(self.judges)

    def _judge(self) -> None:
        progress = self.progress
        self.student.decode(as_halves=True)
        divergence = self.divergence()
        better = divergence < progress.best
        progress.failures = 0 if better else progress.failures + 1
        if better:
            progress.best = divergence
            self._remember()
        progress.ended = progress.step >= self.steps or progress.failures >= PATIENCE

    def _remember(self) -> None:
        for name, matrix in self.student.matrices.items():
            self.best[name] = {
                "codes": matrix.codes(),
                "scale": as_numpy(matrix.scale).astype(np.float16),
            }

    def _gradients(self, tokens: Array) -> dict[str, Array]:
        """Of the mean divergence of some texts, at every trained matrix."""
        back = Backward(self.student, tokens, trained=self.student.matrices.keys())
        logits = back.logits()
        xp = array_namespace(logits)
        gradient = xp.exp(_log_softmax(logits)) - xp.exp(_log_softmax(self.teacher.logits(tokens)))
        return back.gradients(gradient / (tokens.shape[0] * tokens.shape[1]))

    def _order(self) -> Any:
        """Texts of each step, every text as often as the others."""
        generator = np.random.default_rng([self.seed, len(self.tokens)])
        per_step = max(STEP_TOKENS // self.tokens.shape[1], 1)
        queue: list[int] = []
        while True:
            while len(queue) < per_step:
                queue += generator.permutation(self.train_on).tolist()
            yield np.array(queue[:per_step])
            queue = queue[per_step:]


def _log_softmax(logits: Array) -> Array:
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    shifted -= xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
    return shifted
