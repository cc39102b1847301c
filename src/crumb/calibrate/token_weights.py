"""Weights of the calibration tokens: how strongly the loss answers to a layer's output at each.

In: a float checkpoint, calibration texts or pairs, a folder. Out: one weight a token for every
group of layers, one a feature for embeddings, from one backward pass of the next-token loss
(GuidedQuant, arXiv 2505.07004); of a pair the loss is behind the tokens of its target.
The next tokens are drawn from the model: squares of these gradients are the curvature of its KL
divergence, those of the text's own next tokens are not (docs/quality.md has both).
Stages are walked one at a time, forward and back; what flows between them lies in the folder, so a
killed run goes on at the stage where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan, Stage
from crumb.calibrate.borders import Borders, Portion, cut_parts
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
from crumb.run.whole_texts import Batch, WholeTexts, of_stage, plan_texts
from crumb.texts.pairs import PairTokens

Floats = NDArray[np.float32]
Told = Callable[[Stage, float], None]
"""(a stage behind us, work in forward passes of it)."""

Recorder = Callable[[Portion, slice], Visit]
"""What looks at the gradients of some texts, and of some of their tokens."""

Walk = Callable[[Portion], dict[str, Array]]
"""Some texts back through a stage -> gradients at what flows into it."""

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
    """Refuse what blocks are not trained of, nor formats chosen for. Raises: UsageError."""
    chain = zip(plan.stages, plan.stages[1:], strict=False)
    carried = {"tokens", "positions"}
    if plan.inputs or any(
        len(before.outputs) != 1 or {*stage.inputs} - carried - {*before.outputs}
        for before, stage in chain
    ):
        raise UsageError("this is done for plain decoders only", found=plan.family)


class GradientPass:
    """One forward and one backward pass over all calibration tokens, a stage at a time."""

    def __init__(
        self, checkpoint: Checkpoint, tokens: NDArray[np.int64] | PairTokens, folder: Path
    ) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.stages, self.parts = checkpoint.plan.stages, cut_parts(tokens)
        self.borders = Borders(checkpoint.plan, self.parts, folder)

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
                self._back(index)
            rows = np.load(self._squares_path(index))
            squares |= dict(zip(layer_names(self.stages[index]), rows, strict=True))
            told(self.stages[index], BACKWARD_WORK)
        return TokenWeights(squares, power, self._features())

    def _forward(self, told: Told) -> None:
        """Run all stages but the last; what flows out of each lies in its files then."""
        texts = plan_texts(self.checkpoint, [part.batch for part in self.parts])
        for index, stage in enumerate(self.stages[:-1]):
            if not self.borders.has_values(index):
                ran = of_stage(stage, [self._batch(texts, index, part) for part in self.parts])
                texts.run(index, 0, len(stage.operations), ran)
                outputs = (
                    {name: texts.get(index, batch, name) for name in stage.outputs} for batch in ran
                )
                self.borders.write_values(index, outputs)
            told(stage, FORWARD_WORK)

    def _batch(self, texts: WholeTexts, index: int, part: Portion) -> Batch:
        """Some texts with what flows into a stage."""
        read = part.batch.read and Batch(part.batch.read.tokens)
        batch, values = Batch(part.batch.tokens, read=read), self.borders.values(index, part)
        for name in self.borders.inputs(index):
            half = read if self.borders.is_read(index, name) else batch
            assert half is not None, "what runs once reads a source"
            texts.put(half, name, values[name])
        return batch

    def _squares_path(self, index: int) -> Path:
        return self.folder / f"{index}.squares.npy"

    def _features_path(self, index: int) -> Path:
        """Of the mean squares at the outputs of a stage's embeddings."""
        return self.folder / f"{index}.features.npy"

    def _context(self, stage: Stage) -> Context:
        read = self.checkpoint.tensors.read_float
        weights = {spec.name: read(spec.name) for spec in stage.tensors()}
        return Context(weights, multiply=multiply)

    def _back(self, index: int) -> None:
        """Walk a stage in reverse: its squares, and the gradients at its inputs."""
        stage, parts = self.stages[index], len(self.parts)
        tokens, tables = self.borders.token_count(stage.once), _tables(stage)
        squares = {name: np.zeros(tokens, np.float32) for name in layer_names(stage)}
        features = {
            name: np.zeros((parts, table.features), np.float32) for name, table in tables.items()
        }
        walk = self._head if index == len(self.stages) - 1 else self._block
        record = _recorder(squares, features, stage.once)
        gradients = parallel_map(_untold(walk(index, record)), self.parts)
        self.borders.write_gradients(index, gradients)
        if tables:
            with atomic_file(self._features_path(index)) as file:
                np.save(file, np.array([each.sum(0) for each in features.values()], np.float32))
        with atomic_file(self._squares_path(index)) as file:
            np.save(file, np.array(list(squares.values()), np.float32))
        self.borders.drop(index)

    def _features(self) -> dict[str, Floats]:
        """Mean squares at every table's outputs, over all tokens that it is looked up for."""
        sums: dict[str, Floats] = {}
        counts: Counter[str] = Counter()
        for index, stage in enumerate(self.stages):
            names = list(_tables(stage))
            if names:
                for name, row in zip(names, np.load(self._features_path(index)), strict=True):
                    sums[name] = sums.get(name, np.zeros_like(row)) + row
                    counts[name] += self.borders.token_count(stage.once)
        return {name: total / np.float32(counts[name]) for name, total in sums.items()}

    def _block(self, index: int, record: Recorder) -> Walk:
        stage = self.stages[index]
        context = self._context(stage)

        def one(part: Portion) -> dict[str, Array]:
            flowing = self.borders.gradients(index, part)
            visit = record(part, slice(None))
            stage_gradients(stage, self.borders.values(index, part), flowing, context, visit)
            return flowing

        return one

    def _head(self, index: int, record: Recorder) -> Walk:
        """The last stage, some tokens at a time: its logits are many."""
        stage, before = self.stages[index], self.borders.inputs(index)
        context = self._context(stage)

        def one(part: Portion) -> dict[str, Array]:
            inputs = self.borders.values(index, part)
            gradients: dict[str, list[Array]] = {name: [] for name in before}
            for begin in range(0, part.draws.shape[1], HEAD_TOKENS):
                columns = slice(begin, begin + HEAD_TOKENS)
                buffers = {name: array[:, columns] for name, array in inputs.items()}
                logits = run_stage(stage, dict(buffers), context)[stage.outputs[0]]
                flowing = {stage.outputs[0]: loss_gradient(logits, part.draws[:, columns])}
                visit = record(part, columns)
                stage_gradients(stage, buffers, flowing, context, visit)
                for name in before:
                    gradients[name].append(flowing[name])
            return {name: np.concatenate(each, axis=1) for name, each in gradients.items()}

        return one


def layer_names(stage: Stage) -> list[str]:
    """What the stage's squares go by, in its order."""
    return [name_and_outputs(each)[0] for each in stage.operations if isinstance(each, Layer)]


def _tables(stage: Stage) -> dict[str, Embed]:
    return {each.weight: each for each in stage.operations if isinstance(each, Embed)}


def _untold(walk: Walk) -> Walk:
    """Without NumPy's warnings: what overflows is refused, by name, by the statistics."""

    def quiet(part: Portion) -> dict[str, Array]:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return walk(part)

    return quiet


def _recorder(
    squares: Mapping[str, Floats], features: Mapping[str, Floats], once: bool
) -> Recorder:
    """Notes the mean square of the gradient at each layer's output, token by token.

    And at each embedding's output the sum of squares, part by part and feature by feature.
    """

    def of(part: Portion, columns: slice) -> Visit:
        rows, shape = part.rows(once), part.tokens(once).shape

        def visit(operation: Operation, _: tuple[Array, ...], gradients: Gradients) -> None:
            if isinstance(operation, Layer):
                name, outputs = name_and_outputs(operation)
                gradient = np.asarray(gradients[0])
                mean = np.einsum("bto,bto->bt", gradient, gradient) / outputs
                squares[name][rows].reshape(shape)[:, columns] = mean
            elif isinstance(operation, Embed):
                gradient = np.asarray(gradients[0])
                total = np.einsum("btf,btf->f", gradient, gradient)
                features[operation.weight][part.number] += total

        return visit

    return of


def loss_gradient(logits: Floats, draws: Floats) -> Floats:
    """Gradient of the summed loss of tokens drawn from the logits, at these.

    A draw is where its token lies in the cumulated probabilities.
    Shapes: (batch, tokens, vocabulary), (batch, tokens) -> as the logits.
    """
    gradient: Floats = np.exp(logits - logits.max(-1, keepdims=True))
    gradient /= gradient.sum(-1, keepdims=True)
    for place, draw in np.ndenumerate(draws):
        probabilities = gradient[place]
        cumulated = probabilities.cumsum(dtype=np.float64)
        drawn = np.searchsorted(cumulated, draw * cumulated[-1], side="right")
        probabilities[min(int(drawn), len(probabilities) - 1)] -= 1.0
    return gradient
