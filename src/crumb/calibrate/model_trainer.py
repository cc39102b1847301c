"""Training all blocks together at the end of a quantization; deaths are survived.

In: the float checkpoint, every matrix as it was solved, the calibration tokens, a workspace. Out:
the matrices trained, in their place in the workspace. The state of the training lies in the
workspace too, from time to time, and its end before the first matrix takes its place: a killed run
goes on to the same bytes.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.calibrate.block_trainer import read_matrix, trained_linears
from crumb.calibrate.model_training import ModelTraining, StudentModel, TrainingState
from crumb.calibrate.token_weights import check_decoder
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.workspace import FinishedTensor, Workspace
from crumb.checkpoints.tensor_map import Entry
from crumb.files.atomic_file import atomic_file
from crumb.kernels.tile import pack_tensor
from crumb.operations.operation import Array, as_numpy
from crumb.run.devices import arrays_on
from crumb.run.model import Model

STATE = "training.npz"
SAVE_SECONDS = 60.0
"""Between two states on disk: they are large."""

TOGETHER = "trained_together"
"""What the manifest says of it, for each matrix."""


@dataclass(frozen=True)
class TogetherSettings:
    """How all blocks are trained together."""

    steps: int
    seed: int
    device: str


class ModelTrainer:
    """The last part of one quantization."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        entries: Mapping[str, Entry],
        workspace: Workspace,
        settings: TogetherSettings,
    ) -> None:
        """`entries`: of the quantized model, solved matrices in place of the float ones."""
        check_decoder(checkpoint.plan)
        self.checkpoint, self.entries = checkpoint, entries
        self.workspace, self.settings = workspace, settings
        self.as_array = arrays_on(settings.device)
        self._path = workspace.gradients / STATE

    def train(
        self,
        formats: Mapping[str, object],
        tokens: NDArray[np.int64],
        told: Callable[[int], None],
    ) -> dict[str, FinishedTensor]:
        """Train what is solved; what has new codes now. `told` of steps behind us."""
        solved: dict[str, FinishedTensor] = {}
        for stage in self.checkpoint.plan.stages[1:-1]:
            for linear in trained_linears(stage, formats):
                finished = self.workspace.finished(linear.weight)
                assert finished is not None, "solved before it is trained"
                if "on_grid" not in finished.record:
                    solved[linear.weight] = finished
        if all(TOGETHER in each.record for each in solved.values()):
            told(self.settings.steps)
            return solved
        training = self._training(solved, tokens)
        self._restore(training)
        told(training.progress.step)
        saved = time.monotonic()

        def judged() -> None:
            nonlocal saved
            if training.progress.ended or time.monotonic() - saved > SAVE_SECONDS:
                self._save(training)
                saved = time.monotonic()

        outcome = training.run(told, judged)
        for name, tensor in solved.items():
            self._store(name, tensor, training, outcome)
        return {name: self._finished(name) for name in solved}

    def _training(
        self, solved: Mapping[str, FinishedTensor], tokens: NDArray[np.int64]
    ) -> ModelTraining:
        as_array = self.as_array
        floats = self.checkpoint.tensors.read_float
        matrices = {
            name: read_matrix(each, floats(name), as_array) for name, each in solved.items()
        }
        tensors = replace(self.checkpoint.tensors, entries=dict(self.entries))
        student = StudentModel(
            replace(self.checkpoint, tensors=tensors), as_array, matrices=matrices
        )
        teacher = Model(self.checkpoint, as_array)
        return ModelTraining(teacher, student, tokens, self.settings.steps, self.settings.seed)

    def _finished(self, name: str) -> FinishedTensor:
        finished = self.workspace.finished(name)
        assert finished is not None, "just stored"
        return finished

    def _store(
        self, name: str, solved: FinishedTensor, training: ModelTraining, outcome: TrainingState
    ) -> None:
        """The best codes in place of those that were solved."""
        if TOGETHER in solved.record:
            return
        best, matrix = training.best[name], training.student.matrices[name]
        parameters = replace(matrix.parameters, scale=best["scale"])
        says = {"divergence_before": outcome.before, "divergence_after": outcome.best}
        record = solved.record | {TOGETHER: says | {"steps": outcome.step}}
        tensor = pack_tensor(best["codes"], parameters, matrix.format)
        tensor = replace(tensor, columns=matrix.columns)
        self.workspace.store(name, tensor, record)

    def _save(self, training: ModelTraining) -> None:
        arrays: dict[str, Any] = {
            f"progress/{name}": np.asarray(value)
            for name, value in asdict(training.progress).items()
        }
        for name, matrix in training.student.matrices.items():
            best = {f"best_{word}": array for word, array in training.best[name].items()}
            states = best if training.progress.ended else best | matrix.state()
            arrays |= {f"{word}/{name}": as_numpy(array) for word, array in states.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path) as file:
            np.savez(file, **arrays)

    def _restore(self, training: ModelTraining) -> None:
        """Go on from what lies on disk. A damaged file is none: all is read before any is taken."""
        matrices = training.student.matrices
        states: dict[str, dict[str, Array]] = {}
        try:
            with self._path.open("rb") as file, np.load(file) as arrays:
                progress = TrainingState(
                    **{name: arrays[f"progress/{name}"].item() for name in asdict(TrainingState())}
                )
                best = {
                    name: {word: arrays[f"best_{word}/{name}"] for word in ("codes", "scale")}
                    for name in matrices
                }
                for name, matrix in matrices.items() if not progress.ended else ():
                    states[name] = {
                        word: _of_shape(arrays[f"{word}/{name}"], own)
                        for word, own in matrix.state().items()
                    }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        for name, state in states.items():
            matrices[name].restore({word: self.as_array(state[word]) for word in state})
        training.best, training.progress = best, progress


def _of_shape(array: NDArray[Any], own: Array) -> NDArray[Any]:
    """The array, whose shape is that of our own. Raises: ValueError."""
    if array.shape != tuple(own.shape):
        raise ValueError(f"{array.shape} in place of {tuple(own.shape)}")
    return array
