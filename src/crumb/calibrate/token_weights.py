"""Weights of the calibration tokens: how strongly the loss answers to a layer's output at each.

In: a float checkpoint, calibration tokens, a folder. Out: one weight a token for every group of
layers, one a feature for embeddings, from one backward pass of the next-token loss (GuidedQuant,
arXiv 2505.07004).
Stages are walked one at a time, forward and back; what flows between them lies in the folder, so a
killed run goes on at the stage where it was. Refuses models that are not decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan, Stage
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import UsageError
from crumb.files.atomic_file import atomic_file
from crumb.kernels.products import multiply
from crumb.kernels.threads import parallel_map
from crumb.operations.embed import Embed
from crumb.operations.experts import Experts
from crumb.operations.headlinear import HeadLinear
from crumb.operations.linear import Linear
from crumb.operations.operation import Array, Context, Gradients, Operation
from crumb.run.array_executor import run_stage
from crumb.run.backward import Visit, stage_gradients
from crumb.run.model import start_buffers
from crumb.run.whole_texts import cut_batches, plan_texts, texts_together

Floats = NDArray[np.float32]
Told = Callable[[Stage, float], None]
"""(a stage behind us, work in forward passes of it)."""

Recorder = Callable[[slice, slice], Visit]
"""What looks at the gradients of some texts, and of some of their tokens."""

CLIP_QUANTILE = 0.999
"""Larger weights are cut to this quantile: a few tokens would decide everything otherwise."""

FORWARD_WORK, BACKWARD_WORK = 1.0, 3.0
"""Of a stage, in its forward passes: on the way back it runs again, and its rows in reverse."""

HEAD_TOKENS = 128
"""Tokens of one sequence whose logits are in memory together, for each thread."""


Layer = Linear | HeadLinear | Experts
"""What gradients are looked at behind; all experts of a block are one, and all heads."""


def name_and_outputs(layer: Layer) -> tuple[str, int]:
    """What a layer's squares go by, and the features that it writes."""
    if isinstance(layer, Experts):
        return layer.down, layer.in_features
    if isinstance(layer, HeadLinear):
        return layer.weight, layer.heads * layer.out_features
    return layer.weight, layer.out_features


@dataclass(frozen=True)
class TokenWeights:
    """Mean squared gradients of the loss at every layer's output."""

    squares: Mapping[str, Floats]  # by name_and_outputs -> (tokens,)
    power: float
    features: Mapping[str, Floats] = field(default_factory=dict)  # embedding -> (features,)

    def of(self, layers: Sequence[Layer]) -> Floats:
        """Weights for layers that share one input, mean 1. Shapes: -> (tokens,)."""
        names, widths = zip(*map(name_and_outputs, layers), strict=True)
        shares = [width / sum(widths) for width in widths]
        squares = [self.squares[name].astype(np.float64) for name in names]
        mean_squares = np.einsum("l,lt->t", shares, np.stack(squares))
        with np.errstate(over="ignore", invalid="ignore"):  # statistics refuse it, by name
            most = np.quantile(mean_squares, CLIP_QUANTILE)
            clipped = np.minimum(mean_squares, most) ** self.power
            mean = float(clipped.mean())
        if not np.isfinite(mean) or mean <= 0.0:
            return np.ones(len(clipped), np.float32)
        return np.asarray(clipped / mean, np.float32)


def check_decoder(plan: Plan) -> None:
    """Refuse what gradients do not go through. Raises: UsageError."""
    chain = zip(plan.stages, plan.stages[1:], strict=False)
    carried = {"tokens", "positions"}
    if plan.inputs or any(
        len(before.outputs) != 1 or {*stage.inputs} - carried - {*before.outputs}
        for before, stage in chain
    ):
        raise UsageError("gradients go through plain decoders only", found=plan.family)


class GradientPass:
    """One forward and one backward pass over all calibration tokens, a stage at a time."""

    def __init__(self, checkpoint: Checkpoint, tokens: NDArray[np.int64], folder: Path) -> None:
        check_decoder(checkpoint.plan)
        self.checkpoint, self.tokens, self.folder = checkpoint, tokens, folder
        self.stages = checkpoint.plan.stages
        per_batch = texts_together(tokens.shape[1])
        begins = range(0, len(tokens), per_batch)
        self.batches = [slice(begin, begin + per_batch) for begin in begins]

    def run(self, power: float, told: Told = lambda stage, work: None) -> TokenWeights:
        """Both passes, or what an earlier run left of them; `told` of each stage behind us.

        Raises: DoesNotFit where the disk is full, CheckpointError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = len(self.stages) - 1
        if not self._squares_path(last).exists():
            self._forward(told)
        squares: dict[str, Floats] = {}
        for index in range(last, -1, -1):
            if not self._squares_path(index).exists():
                self._back(index) if index else self._back_to_tables()
            rows = np.load(self._squares_path(index))
            squares |= dict(zip(layer_names(self.stages[index]), rows, strict=True))
            told(self.stages[index], BACKWARD_WORK)
        rows = np.load(self._features_path)
        features = dict(zip(_tables(self.stages[0]), rows, strict=True))
        return TokenWeights(squares, power, features)

    def _forward(self, told: Told) -> None:
        """Run all stages but the last; what flows into each lies in its file then."""
        texts = plan_texts(self.checkpoint, cut_batches(self.tokens))
        for index, stage in enumerate(self.stages[:-1]):
            if not self._border_path(index + 1).exists():
                flowing = cut_batches(self.tokens)
                for batch, place in zip(flowing, self.batches, strict=True):
                    for name in self.stages[index - 1].outputs if index else ():
                        texts.put(batch, name, self._inputs(index, place)[name])
                texts.run(index, 0, len(stage.operations), flowing)
                outputs = (texts.get(index, batch, stage.outputs[0]) for batch in flowing)
                self._write(self._border_path(index + 1), outputs)
            told(stage, FORWARD_WORK)

    def _border_path(self, index: int) -> Path:
        """Of what flows into a stage."""
        return self.folder / f"{index}.input.npy"

    def _gradient_path(self, index: int) -> Path:
        """Of the loss's gradient at what flows into a stage."""
        return self.folder / f"{index}.gradient.npy"

    def _squares_path(self, index: int) -> Path:
        return self.folder / f"{index}.squares.npy"

    @property
    def _features_path(self) -> Path:
        """Of the mean squares at the embeddings' outputs."""
        return self.folder / "features.npy"

    def _context(self, stage: Stage) -> Context:
        read = self.checkpoint.tensors.read_float
        weights = {spec.name: read(spec.name) for spec in stage.tensors()}
        return Context(weights, multiply=multiply)

    def _inputs(self, index: int, batch: slice) -> dict[str, Array]:
        """What flows into a stage, and the tokens."""
        buffers = start_buffers(self.tokens[batch])
        if index:
            border = np.load(self._border_path(index), mmap_mode="r")
            buffers[self.stages[index - 1].outputs[0]] = np.array(border[batch])
        return buffers

    def _back(self, index: int) -> None:
        """Walk a stage in reverse: its squares, and the gradient at its input."""
        squares = self._no_squares(index)
        walk = self._head if index == len(self.stages) - 1 else self._block
        record = _recorder(squares)
        gradients = parallel_map(_untold(walk(index, record)), self.batches)
        self._write(self._gradient_path(index), gradients)
        self._finish(index, squares)

    def _back_to_tables(self) -> None:
        """Walk the first stage in reverse: its squares, and those of its embeddings' features."""
        squares, tables = self._no_squares(0), _tables(self.stages[0])
        widths = {name: table.features for name, table in tables.items()}
        texts = len(self.tokens)
        features = {name: np.zeros((texts, width), np.float32) for name, width in widths.items()}
        walk = self._block(0, _recorder(squares, features))
        parallel_map(_untold(walk), self.batches)
        with atomic_file(self._features_path) as file:
            np.save(file, np.array([each.mean(0) for each in features.values()], np.float32))
        self._finish(0, squares)

    def _no_squares(self, index: int) -> dict[str, Floats]:
        return {
            name: np.zeros(self.tokens.shape, np.float32)
            for name in layer_names(self.stages[index])
        }

    def _finish(self, index: int, squares: Mapping[str, Floats]) -> None:
        """Store a stage's squares; what led to them is not needed any more."""
        with atomic_file(self._squares_path(index)) as file:
            np.save(file, np.array([each.ravel() for each in squares.values()], np.float32))
        self._border_path(index).unlink(missing_ok=True)
        self._gradient_path(index + 1).unlink(missing_ok=True)

    def _block(self, index: int, record: Recorder) -> Callable[[slice], Array | None]:
        stage, before = self.stages[index], self.stages[index - 1].outputs[0]
        context = self._context(stage)
        behind = np.load(self._gradient_path(index + 1), mmap_mode="r")

        def one(batch: slice) -> Array | None:
            flowing = {stage.outputs[0]: np.array(behind[batch])}
            visit = record(batch, slice(None))
            stage_gradients(stage, self._inputs(index, batch), flowing, context, visit)
            return flowing.get(before) if index else None

        return one

    def _head(self, index: int, record: Recorder) -> Callable[[slice], Array | None]:
        """The last stage, some tokens at a time: its logits are many."""
        stage, before = self.stages[index], self.stages[index - 1].outputs[0]
        context = self._context(stage)

        def one(batch: slice) -> Array:
            inputs, gradients = self._inputs(index, batch), []
            targets = np.full_like(self.tokens[batch], -1)
            targets[:, :-1] = self.tokens[batch, 1:]
            for begin in range(0, targets.shape[1], HEAD_TOKENS):
                columns = slice(begin, begin + HEAD_TOKENS)
                buffers = {name: array[:, columns] for name, array in inputs.items()}
                logits = run_stage(stage, dict(buffers), context)[stage.outputs[0]]
                flowing = {stage.outputs[0]: loss_gradient(logits, targets[:, columns])}
                visit = record(batch, columns)
                stage_gradients(stage, buffers, flowing, context, visit)
                gradients.append(flowing[before])
            return np.concatenate(gradients, axis=1)

        return one

    def _write(self, path: Path, batches: Iterable[Array | None]) -> None:
        """A file with one array for all tokens; it is there whole or not at all."""
        temporary = path.with_name(path.name + ".tmp")
        array: Array | None = None
        for batch, values in zip(self.batches, batches, strict=True):
            assert values is not None, "only the first stage passes nothing on"
            if array is None:
                shape = (len(self.tokens), *values.shape[1:])
                array = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            array[batch] = values
        temporary.replace(path)


def layer_names(stage: Stage) -> list[str]:
    """What the stage's squares go by, in its order."""
    return [name_and_outputs(each)[0] for each in stage.operations if isinstance(each, Layer)]


def _tables(stage: Stage) -> dict[str, Embed]:
    return {each.weight: each for each in stage.operations if isinstance(each, Embed)}


def _untold(walk: Callable[[slice], Array | None]) -> Callable[[slice], Array | None]:
    """Without NumPy's warnings: what overflows is refused, by name, by the statistics."""

    def quiet(batch: slice) -> Array | None:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return walk(batch)

    return quiet


def _recorder(
    squares: Mapping[str, Floats], features: Mapping[str, Floats] | None = None
) -> Recorder:
    """Notes the mean square of the gradient at each layer's output, token by token.

    And at each embedding's output, text by text and feature by feature, where these are asked for.
    """

    def of(rows: slice, columns: slice) -> Visit:
        def visit(operation: Operation, _: tuple[Array, ...], gradients: Gradients) -> None:
            if isinstance(operation, Layer):
                name, outputs = name_and_outputs(operation)
                gradient = np.asarray(gradients[0])
                mean = np.einsum("bto,bto->bt", gradient, gradient) / outputs
                squares[name][rows, columns] = mean
            elif features is not None and isinstance(operation, Embed):
                gradient = np.asarray(gradients[0])
                mean = np.einsum("btf,btf->bf", gradient, gradient) / gradient.shape[1]
                features[operation.weight][rows] = mean

        return visit

    return of


def loss_gradient(logits: Floats, targets: NDArray[np.int64]) -> Floats:
    """Gradient of the summed next-token loss at the logits; none where a target is -1.

    Shapes: (batch, tokens, vocabulary), (batch, tokens) -> as the logits.
    """
    gradient: Floats = np.exp(logits - logits.max(-1, keepdims=True))
    gradient /= gradient.sum(-1, keepdims=True)
    rows, columns = np.nonzero(targets >= 0)
    gradient[rows, columns, targets[rows, columns]] -= 1.0
    gradient[targets < 0] = 0.0
    return gradient
