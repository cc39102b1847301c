"""Training along a quantization: block after block, what is finished on disk, deaths survived.

In: the float checkpoint, its calibration tokens, a workspace with a block's solved matrices. Out:
the same matrices trained, in their place in the workspace. All of a block are stored beside their
solved ones before the first takes its place, so a killed run trains from the same codes again.
Refuses models that gradients do not go through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.calibrate.block_training import (
    BlockTexts,
    BlockTraining,
    Trained,
    train_block,
)
from crumb.calibrate.token_weights import TokenWeights, check_decoder
from crumb.calibrate.trained_matrix import TrainedMatrix
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.workspace import FinishedTensor, Workspace
from crumb.checkpoints.tensor_map import TensorMap
from crumb.kernels.tile import pack_tensor
from crumb.operations.linear import Linear
from crumb.operations.operation import Array, as_numpy
from crumb.run.devices import arrays_on
from crumb.run.whole_texts import Batch, WholeTexts, cut_batches, plan_texts

Floats = NDArray[np.float32]

BESIDE = ".trained"
"""Behind a tensor's name: its trained codes, until all of its block have theirs."""


@dataclass(frozen=True)
class TrainingSettings:
    """How blocks are trained."""

    steps: int
    seed: int
    device: str = "cpu"


def trained_linears(stage: Stage, formats: Mapping[str, object]) -> list[Linear]:
    """The layers of a stage whose matrices are trained."""
    return [
        operation
        for operation in stage.operations
        if isinstance(operation, Linear) and not operation.exact and operation.weight in formats
    ]


class BlockTrainer:
    """Trains the blocks of one quantization in their order."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: NDArray[np.int64],
        workspace: Workspace,
        settings: TrainingSettings,
    ) -> None:
        check_decoder(checkpoint.plan)
        self.tokens, self.workspace, self.settings = tokens, workspace, settings
        self.stages, self.as_array = checkpoint.plan.stages, arrays_on(settings.device)
        self._float_tensors = checkpoint.tensors
        self._floats = plan_texts(checkpoint, cut_batches(tokens))
        self._float_flowing, self._float_stage = cut_batches(tokens), 0
        self._index, self._inputs = 0, np.zeros((0, 0, 0), np.float32)

    def enter(self, index: int, texts: WholeTexts, flowing: Sequence[Batch]) -> None:
        """Note what flows into a stage, before it is walked."""
        self._index = index
        if index:
            self._inputs = self._collected(texts, index - 1, flowing)

    def train(
        self,
        formats: Mapping[str, object],
        tensors: TensorMap,
        token_weights: TokenWeights | None,
        told: Callable[[float], None],
    ) -> dict[str, FinishedTensor]:
        """Train the stage that was entered; what has new codes now.

        `tensors` are the model's as the walk sees them; `told` of the share of the steps.
        """
        stage = self.stages[self._index]
        solved = {
            linear.weight: self._finished(linear.weight)
            for linear in trained_linears(stage, formats)
        }
        names = [name for name, each in solved.items() if "on_grid" not in each.record]
        if not names:
            return {}
        if self.untrained(names):
            linears = trained_linears(stage, formats)
            weights = np.ones(self.tokens.size, np.float32)
            if token_weights is not None:
                weights = token_weights.of(linears[-1:])
            matrices = {
                name: read_matrix(solved[name], self._float_tensors.read_float(name), self.as_array)
                for name in names
            }
            outcome = self._train(stage, matrices, tensors, weights, told)
            for name, matrix in matrices.items():
                self._store_beside(name, matrix if outcome.accepted else None, outcome)
        return {name: self._take_place(name) for name in names if not _is_trained(solved[name])}

    def untrained(self, names: Sequence[str]) -> bool:
        """Whether one of these is solved and has no trained codes yet."""
        solved = [self.workspace.finished(name) for name in names]
        return any(
            "on_grid" not in each.record and self.workspace.finished(name + BESIDE) is None
            for name, each in zip(names, solved, strict=True)
            if each is not None
        )

    def leave(self, texts: WholeTexts) -> list[Batch]:
        """What flows out of the stage, its new codes in place."""
        flowing, index = cut_batches(self.tokens), self._index
        begin = 0
        for batch in flowing:
            rows = slice(begin, begin + len(batch.tokens))
            texts.put(batch, self.stages[index - 1].outputs[0], self._inputs[rows])
            begin = rows.stop
        texts.run(index, 0, len(self.stages[index].operations), flowing)
        return flowing

    def _train(
        self,
        stage: Stage,
        matrices: dict[str, TrainedMatrix],
        tensors: TensorMap,
        weights: Floats,
        told: Callable[[float], None],
    ) -> Trained:
        untouched = {
            spec.name: self.as_array(tensors.read_float(spec.name))
            for spec in stage.tensors()
            if spec.name not in matrices
        }
        weights = weights.reshape(self.tokens.shape)
        arrays = (self.tokens, self._inputs, self._targets(), weights)
        texts = BlockTexts(*map(self.as_array, arrays))
        seed = (self.settings.seed, self._index)
        training = BlockTraining(stage, self.stages[self._index - 1].outputs[0], untouched, texts)
        share = 1 / self.settings.steps
        return train_block(training, matrices, self.settings.steps, seed, lambda _: told(share))

    def _targets(self) -> Floats:
        """What flows out of the stage in the float model, whose stages run as far as that."""
        while self._float_stage <= self._index:
            operations = self.stages[self._float_stage].operations
            self._floats.run(self._float_stage, 0, len(operations), self._float_flowing)
            self._float_stage += 1
        return self._collected(self._floats, self._index, self._float_flowing)

    def _collected(self, texts: WholeTexts, index: int, flowing: Sequence[Batch]) -> Floats:
        """A copy of what flows out of a stage, (texts, length, features)."""
        name = self.stages[index].outputs[0]
        return np.concatenate([texts.get(index, batch, name) for batch in flowing])

    def _finished(self, name: str) -> FinishedTensor:
        finished = self.workspace.finished(name)
        assert finished is not None, "solved before it is trained"
        return finished

    def _store_beside(self, name: str, matrix: TrainedMatrix | None, outcome: Trained) -> None:
        solved = self._finished(name)
        says: dict[str, object] = {
            "trained": {"held_out_before": outcome.before, "held_out_after": outcome.after}
        }
        if matrix is None:
            self.workspace.store(name + BESIDE, solved.entry.read(), solved.record | says)
            return
        says["zero_share"] = float((as_numpy(matrix.weights(as_halves=True)) == 0).mean())
        tensor = replace(pack_tensor(*matrix.solution(), matrix.format), columns=matrix.columns)
        self.workspace.store(name + BESIDE, tensor, solved.record | says)

    def _take_place(self, name: str) -> FinishedTensor:
        beside = self._finished(name + BESIDE)
        self.workspace.store(name, beside.entry.read(), beside.record)
        return self._finished(name)


def read_matrix(
    tensor: FinishedTensor, floats: Floats, as_array: Callable[[Any], Array]
) -> TrainedMatrix:
    """A solved matrix, to be trained. Shapes: floats (rows, columns), what was quantized."""
    columns, codes = tensor.entry.read().columns, tensor.entry.read_codes(slice(None))
    return TrainedMatrix.of(tensor.entry.format, *codes, columns, floats, as_array)


def _is_trained(tensor: FinishedTensor) -> bool:
    return "trained" in tensor.record
